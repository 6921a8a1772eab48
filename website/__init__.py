"""The documentation's site: what mkdocs can't know by itself. `make docs` builds it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
