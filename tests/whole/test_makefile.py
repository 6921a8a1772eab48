"""The Makefile's settings: each target takes what it reads, and refuses by name whatever else is given to it."""

import os
import re
import shlex
import subprocess

import pytest

from tests.helpers.launch import make_targets
from tests.helpers.paths import REPO

SETTINGS = [
    *("ARGS", "BENCHMARKS", "CO", "CONFIG", "DELETE", "DEMO", "DETACH", "DRY_RUN", "GPUS", "JOB", "JUDGES", "MINUTES", "MODEL", "NODES"),
    *("PAIRS", "PORT", "QUEUED", "RESTARTS", "RUN", "SIZE", "SKIP_PLAN", "SPOT", "TPU", "WAIT_MIN", "XPK"),
]
TARGETS = [
    *(f"{job}-{where}" for job in ("train", "eval", "serve", "teacher") for where in ("tpu", "gke", "sky", "slurm")),
    *("train", "train-local-multihost", "reproduce", "distill-demo", "codecode-demo", "plan", "docs", "test", "test-slow", "test-heavy"),
    *("lint", "clean", "help"),
]
TARGETS.remove("serve-sky")


def make(*words, **settings):
    """What `make` would run; `settings` come by the environment, which is never refused and, with -e, read as the command line is."""
    env = {key: value for key, value in os.environ.items() if "MAKE" not in key and key != "MFLAGS"}  # `make test` runs this
    return subprocess.run(["make", "-n", *words], cwd=REPO, env=env | settings, capture_output=True, text=True)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_takes_what_it_reads(target):
    plain = make("-e", target).stdout
    reads = {name for name in SETTINGS if make("-e", target, **{name: "1"}).stdout != plain}
    refused = make(target, *(f"{name}=1" for name in SETTINGS))
    named = re.search(rf"make {target} would ignore ([A-Z_ ]+), which it doesn't read: leave it out", refused.stderr)
    assert refused.returncode == 2 and refused.stdout == "" and named
    assert set(SETTINGS) - set(named[1].split()) == reads
    assert make(target, *(f"{name}=1" for name in reads)).returncode == 0


def test_what_is_deleted_is_asked_for_as_it_was_started():
    given = ["TPU=v5e:4x4", "SPOT=1", "DELETE=1", "QUEUED=1", "CONFIG=configs/lpo_hf.yaml", "ARGS=run_dir=runs/x"]
    command = make("train-tpu-down", *given).stdout.splitlines()[-1]
    assert shlex.split(command)[-3:] == ["train", "configs/lpo_hf.yaml", "run_dir=runs/x"] and "--down" in command
    assert "would ignore NODES" in make("train-tpu-down", "NODES=2").stderr


def test_a_misspelt_setting_is_refused_and_one_that_any_of_several_targets_reads_is_not():
    assert "make train-tpu would ignore SPTO" in make("train-tpu", "SPTO=1").stderr
    assert make("lint", "test", "ARGS=-x").returncode == 0


def test_a_path_with_a_blank_is_one_word_or_refused():
    name = "my configs/it's.yaml"
    for target in ("train", "train-local-multihost", "train-tpu", "teacher-gke", "train-slurm", "train-tpu-down"):
        command = make(target, f"CONFIG={name}", "ARGS=run_dir=runs/x").stdout.replace("\\\n", " ").splitlines()[-1]
        assert name in shlex.split(command), command
    assert "--tpu=v5e:4x4 x" in shlex.split(make("eval-tpu", "TPU=v5e:4x4 x").stdout.replace("\\\n", " ").splitlines()[-1])
    for setting, target in (("RUN", "train"), ("CO", "codecode-demo"), ("DEMO", "distill-demo")):
        refused = make(target, f"{setting}=my runs")
        assert refused.returncode == 2 and f"{setting}='my runs': give a path of one word" in refused.stderr


def test_a_switch_is_on_or_off_and_nothing_else():
    """Whatever means the same said 1 and yes is one."""
    switches = set()
    for target in ("train-tpu", "train-tpu-down", "serve-gke", "eval-sky", "train-slurm", "train-local-multihost"):
        plain = make(target).stdout
        for name in set(SETTINGS) - {"ARGS", "CONFIG", "JOB"}:
            on = make(target, f"{name}=1").stdout
            if not on or on == plain or on != make(target, f"{name}=yes").stdout:
                continue
            switches.add(name)
            assert {make(target, f"{name}={word}").stdout for word in ("true", "TRUE", "On", "YES")} == {on}
            assert {make(target, f"{name}={word}").stdout for word in ("", "0", "FALSE", "No", "OFF", "off")} == {plain}
            refused = make(target, f"{name}=maybe")
            if name == "DELETE":  # has more words, which the launcher knows
                assert "--delete=maybe" in shlex.split(refused.stdout.replace("\\\n", " ").splitlines()[-1])
            else:
                assert refused.returncode == 2 and refused.stdout == "" and f"{name}='maybe': give 1 or 0" in refused.stderr
    assert switches == {"SPOT", "SKIP_PLAN", "DETACH", "QUEUED", "XPK", "DRY_RUN", "DELETE"}


def test_a_dry_run_installs_builds_and_starts_nothing():
    """But our own package, which checks the job."""
    for target in ("train-tpu", "serve-gke", "eval-sky", "train-slurm", "train-local-multihost", "train-tpu-down"):
        given = {"train-slurm": ["GPUS=8"], "train-local-multihost": ["RUN=runs/none"]}.get(target, [])
        *before, command = make("-o", ".venv/installed", target, "DRY_RUN=1", *given).stdout.replace("\\\n", " ").splitlines()
        assert "--dry-run" in shlex.split(command) and "-m launch." in command
        shown = subprocess.run(
            "\n".join(before), shell=True, cwd=REPO, env={"PATH": ""}, capture_output=True, text=True
        )  # no program is found
        assert shown.stderr == "" and shown.stdout.startswith("+ .venv/bin/lpo-data build") == (target == "train-local-multihost"), before


def test_a_key_on_the_command_line_is_asked_for_in_the_environment():
    refused = make("serve-tpu", "LPO_API_KEY=hush", "LPO_ZONE=z")
    assert refused.returncode == 2 and refused.stdout == "" and "hush" not in refused.stderr
    assert "all users" in refused.stderr and "export LPO_API_KEY=... LPO_ZONE=... first" in refused.stderr
    refused = make("train-gke", "LPO_BUCKET=b").stderr
    assert "export LPO_BUCKET=... first" in refused and "all users" not in refused


def test_no_target_is_left_out():
    """Those that are alike but for the job's name, and their -down, are."""
    others = {name for name in make_targets() if re.fullmatch("[a-z-]+", name)} - set(TARGETS)
    assert all(re.fullmatch("(train|eval|serve|generate|teacher|export)-(tpu|gke|sky|slurm)(-down)?", name) for name in others), others
