"""Pretrained models in Hugging Face form, where they are at hand.

They lie in the directory that the environment variable LPO_REAL_MODELS names, by the names of ../shared/tools/real_models.py, which makes them.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import REPO

TOOL = REPO.parent / "shared" / "tools" / "real_models.py"


def find(name: str) -> Path:
    """A model's directory; without it the test is skipped."""
    path = Path(os.environ.get("LPO_REAL_MODELS", "")) / name
    if not (path / "done.json").is_file():
        pytest.skip(f"no {name} here: set LPO_REAL_MODELS to a directory that has it")
    return path


def make(name: str, scratch: Path) -> Path:
    """As `find`, but what isn't there is made in `scratch`; that takes the network."""
    if "LPO_REAL_MODELS" in os.environ:
        return find(name)
    if not TOOL.is_file():
        pytest.skip("no shared tools beside this checkout")
    made = subprocess.run([sys.executable, TOOL, name, scratch / name], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"{name} can't be made here: {made.stderr[-200:]}")
    return scratch / name
