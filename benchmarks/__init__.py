"""Benchmarks: each compares ways of doing one thing in one run and prints ratios. `python -m benchmarks.step --help`."""
