"""What is wrong with a launcher's own options is one line, which calls them as `make` does."""

import importlib
import os
import re

import pytest

from tests.helpers.paths import REPO

TRAIN = ("train", "configs/tiny_cpu.yaml")


@pytest.fixture
def launch(monkeypatch):
    """Runs a launcher in this process, whose directory and PATH it sets."""
    monkeypatch.chdir(REPO)
    monkeypatch.setenv("PATH", os.environ["PATH"])

    def run(module, *words):
        monkeypatch.setattr("sys.argv", [module, *words])
        return importlib.import_module(f"launch.{module}").main()

    return run


@pytest.mark.parametrize(
    ("module", "words", "said"),
    [
        ("slurm", ("--gpus=eight", *TRAIN), "--gpus (make: GPUS=...): 'eight' is no whole number"),
        ("slurm", ("--nodes=0", *TRAIN), "--nodes (make: NODES=...): 0 must lie in 1 .."),
        ("gke", ("--port=99999", "serve"), "--port (make: PORT=...): 99999 must lie in 1 .. 65535"),
        ("gke", ("--restarts=-1", *TRAIN), "--restarts (make: RESTARTS=...): -1 must lie in 0 .."),
        ("tpu", ("--delete=sometimes", *TRAIN), "--delete (make: DELETE=...): invalid choice: 'sometimes'"),
        ("tpu", ("--wait-min=x", *TRAIN), "--wait-min (make: WAIT_MIN=...): 'x' is no whole number"),
        ("sky", ("--name=My Job", *TRAIN), "--name (make: JOB=...): 'My Job' can't name a job"),
        ("tpu", ("--port=80", *TRAIN), "--port (make: PORT=...): only a server has a tunnel"),
        ("tpu", ("--skip-plan", "eval"), "--skip-plan (make: SKIP_PLAN=...): train and serve are planned"),
        ("local", ("--grace-s=x", *TRAIN), "--grace-s: 'x' is no number"),  # make has none of the kind
        ("tpu", ("--spto", *TRAIN), "unrecognized arguments: --spto: did you mean '--spot'?"),
        ("tpu", ("--spot", "trian"), "invalid choice: 'trian' (choose from 'train', "),
        ("gke", (), "which command? One of train, "),
        ("tpu", ("--down", "train", "configs/none.yaml"), "configs/none.yaml: no such config"),
    ],
)
def test_a_wrong_option_is_one_line(module, words, said, launch, capsys):
    assert launch(module, *words) == 2
    error = capsys.readouterr().err
    assert re.match(rf"python -m launch\.{module}: error: (argument COMMAND: )?{re.escape(said)}", error) and error.count("\n") == 1


def test_an_option_of_the_command_is_the_commands(launch, capsys):
    """A launcher's own parser takes none of them for its own, misspelt."""
    assert launch("local", "--dry-run", "generate", "--modle", "x") == 2
    assert "unrecognized arguments: --modle: did you mean '--model'?; `lpo generate --help` explains" in capsys.readouterr().err
