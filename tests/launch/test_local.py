"""`make train-local-multihost` with a stand-in for lpo: what each process is told, and how they end."""

import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import REPO

CONFIG = "configs/tiny_cpu.yaml"
WAITS = """#!/bin/sh
case $JAX_PROCESS_ID in
  0) trap 'echo saved; exit 75' TERM; touch "$FAKES/up"; while :; do sleep 0.05; done;;
  *) trap 'exit 75' TERM; while :; do sleep 0.05; done;;
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
    done = fakes.run("local", "--name=lpo-test-local", CONFIG, "a={b: c}", env={"XLA_FLAGS": "--xla_mine=1"})
    assert done.returncode == 0, done.stderr
    assert "exit codes: 0, 0" in done.stdout
    assert done.stdout.count("training") == 1  # process 0's; the other's is in its file
    assert (logs / "lpo-test-local-1.log").read_text() == "training\n"
    told = sorted((call["env"] for call in fakes.calls), key=lambda env: env["JAX_PROCESS_ID"])
    assert [call["argv"] for call in fakes.calls] == [["lpo", "train", CONFIG, "a={b: c}"]] * 2
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
    command = [sys.executable, "-m", "launch.local", "--name=lpo-test-local", CONFIG]
    with subprocess.Popen(command, stdout=subprocess.PIPE, **options) as process:
        for _ in range(200):
            if (fakes.home / "up").exists():
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "saved" in out
    assert "exit codes: 75, 75" in out


def test_one_that_fails_ends_the_others(fakes, logs):
    fakes.add("lpo", '#!/bin/sh\n[ "$JAX_PROCESS_ID" = 1 ] && exit 3\nexec sleep 60\n')
    done = fakes.run("local", "--name=lpo-test-local", "--grace-s=0.2", CONFIG, env={"PATH": f"{fakes.bin}:/usr/bin:/bin"})
    assert done.returncode == 3
    assert "exit codes: 137, 3" in done.stdout


def test_a_dry_run_runs_nothing(fakes):
    done = fakes.run("local", "--dry-run", CONFIG)
    assert done.stdout.count("+ env JAX_COORDINATOR_ADDRESS=127.0.0.1:") == 2
    assert fakes.calls == []
