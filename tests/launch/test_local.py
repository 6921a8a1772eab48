"""`make train-local-multihost` with a stand-in for lpo: what each process is told, and how they end."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.launch import CONFIG
from tests.helpers.paths import REPO

GIVEN = [CONFIG, "data.path=configs", "mesh={data: 1, tensor: 8}"]  # any directory; on eight devices rows aren't cut
WAITS = """#!/bin/sh
case $JAX_PROCESS_ID in
  0) trap 'echo saved; exit 75' TERM; touch "$FAKES/up0"; while :; do sleep 0.05; done;;
  *) trap 'exit 75' TERM; touch "$FAKES/up1"; while :; do sleep 0.05; done;;
esac
"""


@pytest.fixture
def logs():
    folder = REPO / "runs/local"
    yield folder
    for file in folder.glob("lpo-test-local-*.log"):
        file.unlink()


def test_what_each_process_is_told(fakes, logs):
    fakes.answer("lpo train", "training\n")
    done = fakes.run("local", "--name=lpo-test-local", *GIVEN, env={"XLA_FLAGS": "--xla_mine=1"})
    assert done.returncode == 0, done.stderr
    assert "exit codes: 0, 0" in done.stdout
    assert done.stdout.count("training") == 1  # process 0's; the other's is in its file
    assert (logs / "lpo-test-local-1.log").read_text() == "training\n"
    told = sorted((call["env"] for call in fakes.calls), key=lambda env: env["JAX_PROCESS_ID"])
    assert [call["argv"] for call in fakes.calls] == [["lpo", "train", *GIVEN]] * 2
    assert [env["JAX_PROCESS_ID"] for env in told] == ["0", "1"]
    (address,) = {env["JAX_COORDINATOR_ADDRESS"] for env in told}
    assert address.startswith("127.0.0.1:")
    for env in told:
        assert (env["JAX_NUM_PROCESSES"], env["JAX_PLATFORMS"], env["JAX_CPU_COLLECTIVES_IMPLEMENTATION"]) == ("2", "cpu", "gloo")
        assert env["XLA_FLAGS"] == "--xla_mine=1 --xla_force_host_platform_device_count=4"


def test_sigterm_goes_to_all_and_all_save(fakes, logs):
    fakes.add("lpo", WAITS)
    options = fakes.options({"PATH": f"{fakes.bin}:/usr/bin:/bin"})
    options.pop("timeout"), options.pop("capture_output")
    command = [sys.executable, "-m", "launch.local", "--name=lpo-test-local", "train", *GIVEN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, **options) as process:
        for _ in range(1200):
            if all((fakes.home / f"up{index}").exists() for index in range(2)):
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "saved" in out
    assert "exit codes: 75, 75" in out


def test_one_that_fails_ends_the_others(fakes, logs):
    fakes.add("lpo", '#!/bin/sh\n[ "$JAX_PROCESS_ID" = 1 ] && exit 3\nexec sleep 60\n')
    done = fakes.run("local", "--name=lpo-test-local", "--grace-s=0.2", *GIVEN, env={"PATH": f"{fakes.bin}:/usr/bin:/bin"})
    assert done.returncode == 3
    assert "exit codes: 137, 3" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lpo_jax.train.distributed") is None, reason="lpo train doesn't look for other processes yet")
def test_two_real_processes_train_one_model(fakes, tmp_path, seed_shards, logs):
    fakes.add("lpo", f'#!/bin/sh\nexec {sys.executable} -m lpo_jax.cli "$@"\n')  # this tree's, whatever is installed
    two = [f"stages.{stage}.{setting}" for stage in ("sft", "lpo") for setting in ("batch_rows=8", "epochs=null", "steps=3")]
    settings = [
        f"run_dir={tmp_path}/run",
        f"data.path={seed_shards['trimmed']}",
        "eval_rows=8",
        "eval_every_steps=0",
        "report_pairs=2",
        *two,
    ]
    env = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "PATH": f"{fakes.bin}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "launch.local", "--name=lpo-test-local", "train", CONFIG, *settings]
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "exit codes: 0, 0" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines if line["group"] == "train"] == [
        (s, n) for s in ("sft", "lpo") for n in (1, 2, 3)
    ]


def test_a_dry_run_that_finds_something_wrong_says_so(fakes):
    done = fakes.run("local", "--dry-run", CONFIG, "data.path=runs/none", "mesh.tensor=8")
    assert done.returncode == 2 and "data.path=runs/none: no such shard set" in done.stderr and "+ env" not in done.stdout


def test_a_dry_run_goes_on_without_what_is_built_first(fakes):
    done = fakes.run("local", "--dry-run", "--built=./runs/none", CONFIG, "data.path=runs/none", "mesh={data: 1, tensor: 8}")
    assert done.returncode == 0 and done.stdout.count("+ env JAX_COORDINATOR_ADDRESS=") == 2, done.stderr
    assert "data.path=runs/none isn't here: it is built first" in done.stdout
    done = fakes.run("local", "--built=runs/none", CONFIG, "data.path=runs/none", "mesh={data: 1, tensor: 8}")
    assert done.returncode == 2 and "data.path=runs/none: no such shard set" in done.stderr and fakes.calls == []


def test_a_dry_run_runs_nothing(fakes):
    done = fakes.run("local", "--dry-run", *GIVEN)
    assert done.stdout.count("+ env JAX_COORDINATOR_ADDRESS=127.0.0.1:") == 2
    assert fakes.calls == []
    done = fakes.run("local", CONFIG, "data.path=runs/none")
    assert done.returncode == 2 and fakes.calls == []
    assert "data.path=runs/none: no such shard set" in done.stderr and "data * fsdp * expert = 8, e.g. eval_rows=8" in done.stderr
    done = fakes.run("local", "--dry-run", "configs/none.yaml")
    assert done.returncode == 2 and "configs/none.yaml: no such config" in done.stderr
