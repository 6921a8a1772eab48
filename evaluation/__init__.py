"""Evaluation: what models write, judged and shown."""
