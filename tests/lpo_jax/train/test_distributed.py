"""Two processes with four fake devices each on loopback do what one process with eight does; SIGTERM at one of them stops and saves all."""

import signal
import time

import pytest

from lpo_jax import cli
from lpo_jax.config import ConfigError
from lpo_jax.train import distributed
from lpo_jax.train.stop import EXIT_CODE
from tests.helpers.multihost import finish, start
from tests.helpers.training import read_log, tiny_args

STAGE = "{objective: {name: lpo, beta: 2.0, gamma: 3.0, alpha: 1.0}, optim: {lr: 1.0e-2}, batch_rows: 8, accumulate: 1, steps: 24}"


@pytest.mark.slow
def test_two_processes_equal_one_and_a_preempted_run_ends_as_an_undisturbed_one(seed_shards, tmp_path):
    def args(name):
        wanted = [a for a in tiny_args(seed_shards["trimmed"], tmp_path / name) if not a.startswith("stages.")]
        return [*wanted, f"stages={{lpo: {STAGE}}}", "mesh.data=4", "mesh.fsdp=2", "eval_every_steps=10"]

    # One process joins gloo too: XLA's own sums within a process add in another order, and the last bit of a sum differs.
    finish(start(1, "lpo_jax.cli", *args("straight")), [0])
    straight = read_log(tmp_path / "straight")

    two = start(2, "tests.helpers.multihost", "slow", *args("stopped"))
    metrics, deadline = tmp_path / "stopped" / "metrics.jsonl", time.time() + 300
    while time.time() < deadline and (not metrics.is_file() or len(metrics.read_text().splitlines()) < 3):
        time.sleep(0.01)
    two[1].send_signal(signal.SIGTERM)
    first, second = finish(two, [EXIT_CODE, EXIT_CODE])
    said = [line for line in first.splitlines() if line.startswith("lpo: asked to stop: stage lpo is saved after step ")]
    assert len(said) == 1 and said[0].endswith("the same command goes on from there")
    assert "step" not in second  # process 0 speaks for all
    before = read_log(tmp_path / "stopped")
    assert 3 <= len(before) < len(straight)
    assert before == straight[: len(before)]  # bit for bit

    finish(start(1, "lpo_jax.cli", *args("stopped")), [0])
    assert read_log(tmp_path / "stopped") == straight
    assert [line["total_step"] for line in straight if line["group"] == "train"] == list(range(1, 25))
    summaries = [(tmp_path / name / "summary.json").read_text() for name in ("straight", "stopped")]
    assert summaries[0] == summaries[1]
    drawn = [(tmp_path / name / "eval" / "lpo.json").read_text() for name in ("straight", "stopped")]
    assert drawn[0] == drawn[1]


@pytest.mark.slow
def test_rows_and_problems_of_two_processes(seed_shards):
    first, second = finish(start(2, "tests.helpers.multihost", "rows", str(seed_shards["trimmed"])), [0, 0])
    assert "rows (1, 1, 8) 16" in first and "rows (4, 2, 1) 8" in second
    assert "ConfigError process 1: my disk is gone" in first
    assert "OSError my disk is gone" in second


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_NUM_PROCESSES is set, JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID isn't: set all three"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}, r"JAX_NUM_PROCESSES \('two'\).*numbers"),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "is 2: with JAX_NUM_PROCESSES=2 it must be 0 to 1",
        ),
    ],
)
def test_half_an_environment_is_refused(monkeypatch, env, message):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        distributed.initialize()


def test_alone_nothing_is_started(monkeypatch):
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    distributed.initialize()
    assert cli.main(["train", "nowhere.yaml"]) == 2


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.heavy)])
def test_several_processes_compute_and_read_a_kept_reference(seed_shards, tmp_path, count):
    """Each writes what it lacks. What both read and train is what one process does, bit for bit."""
    dpo = "{{objective: {{name: dpo, beta: 0.5, tokens: changed, reference: {}}}, optim: {{lr: 1.0e-2}}, batch_rows: 8, steps: 4}}"

    def args(name):
        wanted = [a for a in tiny_args(seed_shards["trimmed"], tmp_path / name) if not a.startswith("stages.")]
        return [*wanted, f"stages={{dpo: {dpo.format(tmp_path / f'{name}_kept')}}}", "mesh.data=4", "mesh.fsdp=2", "eval_every_steps=0"]

    for name, processes in (("one", 1), ("several", count)):
        finish(start(processes, "lpo_jax.cli", *args(name)), [0] * processes)
    assert read_log(tmp_path / "several") == read_log(tmp_path / "one")
    one, several = (sorted((tmp_path / f"{name}_kept").glob("rows-*")) for name in ("one", "several"))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in several] != []
