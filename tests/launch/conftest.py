"""Stand-ins for gcloud, kubectl, sbatch, ...: they write down how they were called and answer as a test tells them to."""

import os
from pathlib import Path

import pytest

from tests.helpers.launch import NOT_FOUND, Fakes, node
from tests.helpers.paths import REPO


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    assert os.path.isdir(REPO / "launch")
    return Fakes(tmp_path)


@pytest.fixture
def cloud(fakes):
    """No TPU at first; then one of four workers on which everything goes well."""
    fakes.answer("tpu-vm describe", NOT_FOUND, code=1, times=1)
    fakes.answer("tpu-vm describe", node())
    fakes.answer("resources describe", NOT_FOUND, code=1)
    fakes.answer("worker.sh setup", "worker.sh: ready\n" * 4)
    fakes.answer("worker.sh start", "worker.sh: started\n" * 4)
    fakes.answer("worker.sh state", "worker.sh: none\n")
    fakes.answer("worker.sh follow", "step 1 loss 3\nworker.sh: over 0\n")
    return fakes
