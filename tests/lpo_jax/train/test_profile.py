"""`profile`: a run leaves a trace of just the steps that were asked for, and says how to look at it."""

import os
import subprocess
import sys

import pytest
from jax.profiler import ProfileData

from lpo_jax import cli
from tests.helpers.paths import REPO
from tests.helpers.training import tiny_args

SHORT = ["stages.sft.steps=1", "stages.lpo.steps=3", "eval_every_steps=0", "report_pairs=0"]


def traced_steps(run_dir):
    """How often the traces say that the train step was started."""
    found = 0
    for file in (run_dir / "profile").rglob("*.xplane.pb"):
        for plane in ProfileData.from_file(str(file)).planes:
            found += sum(event.name == "CommonPjRtLoadedExecutable::Execute (jit_step)" for line in plane.lines for event in line.events)
    return found


def apart(*command):
    """What a process of its own says: the profiler has crashed one in which much else had run."""
    env = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, *command], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_steps_that_were_asked_for_are_traced(seed_shards, tmp_path):
    """Steps 3 and 4 of the run, of which the second stage has three; the run is then done, and the trace stays as it is."""
    command = ["-m", "lpo_jax.cli", *tiny_args(seed_shards["trimmed"], tmp_path / "run", *SHORT)]
    said = apart(*command, "profile={start: 3, steps: 2}")
    assert traced_steps(tmp_path / "run") == 2
    assert f"xprof --logdir {tmp_path / 'run'}/profile" in said
    assert said.count("attention: blocks of einsums in plain XLA") == 1

    said = apart(*command, "profile.start=1", "model.attention=einsum")  # neither makes it another run
    assert "step 1 (profile.start) is done already" in said and traced_steps(tmp_path / "run") == 2


LEAVES = """
import sys
from pathlib import Path

from etils import epath
from lpo_jax.config import ProfileConfig
from lpo_jax.train.profile import Profile

run_dir = epath.Path(sys.argv[1])
profile = Profile(ProfileConfig(start=1, steps=9), run_dir, 0)
profile.begin(1)
profile.end(1, {})
assert not (run_dir / "profile").exists()
profile.close()
assert list(Path(sys.argv[1]).rglob("*.xplane.pb"))
profile.close()  # once more is no matter
"""


def test_a_run_that_ends_among_them_leaves_what_it_has(tmp_path):
    apart("-c", LEAVES, tmp_path)


@pytest.mark.parametrize("choice", ["kernel", "dense"])
def test_attention_that_this_machine_has_not_is_refused(choice, seed_shards, tmp_path, capsys):
    args = tiny_args(seed_shards["trimmed"], tmp_path / "run", f"model.attention={choice}")
    assert cli.main(args) == 2
    told = capsys.readouterr().err
    assert "model.attention" in told and ("this runs on cpu: set auto or einsum" in told or choice == "dense")
    assert not (tmp_path / "run").exists()
