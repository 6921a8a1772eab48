"""The sandbox's back ends, and a program that attacks one."""

import shutil

import pytest

from judges.sandbox import Case, Limits, run

LIMITS = Limits(time_s=20, cpu_s=20, memory_mb=128, pids=16, file_mb=4, output_kb=64)


@pytest.fixture(params=["bwrap", "unshare"])
def backend(request):
    """Each that is installed: one that is and doesn't work is a failure."""
    if not shutil.which(request.param):
        pytest.skip(f"{request.param} isn't installed")
    return request.param


@pytest.fixture
def attack(backend):
    def launch(code, **limits):
        return run(Case(code, limits=Limits(**{**vars(LIMITS), **limits})), backend=backend)

    return launch
