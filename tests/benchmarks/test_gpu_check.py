"""benchmarks/gpu_check.sh: rehearsed without a GPU, every part ends well and leaves its numbers; a part that fails is named, and the others go on."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.paths import REPO

SCRIPT = REPO / "benchmarks" / "gpu_check.sh"


def check(out, python):
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"PYTHON": str(python), "PYTHONPATH": str(REPO)}
    return subprocess.run(["bash", SCRIPT, out], env=env, capture_output=True, text=True)


@pytest.mark.heavy
def test_the_rehearsal(tmp_path):
    done = check(tmp_path, sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all are right on cpu" in (tmp_path / "doctor.txt").read_text()
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("attention", "step", "decode", "codecode")}
    assert found["step"]["model_flops_per_s"] > 0 and found["attention"]["back_end"] == "cpu"
    assert all(share == 1 for share in found["decode"]["cases"]["rows"]["agree"].values())


def test_a_part_that_fails_is_named_and_the_others_go_on(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in -c*) echo cpu;; *attention*) exit 3;; *) echo "did $*";; esac\n')
    python.chmod(0o755)
    done = check(tmp_path / "out", python)
    assert done.returncode == 1 and done.stderr.strip() == "failed, or took too long: attention"
    assert "did -m benchmarks.codecode" in (tmp_path / "out" / "codecode.txt").read_text()
