"""A run's directory belongs to one job."""

import contextlib
import json

import pytest
from etils import epath

from foundation import files
from lpo_jax import cli
from lpo_jax.config import ConfigError, load, to_dict
from lpo_jax.train import run_dir
from lpo_jax.train.checkpoint import Checkpoints
from tests.helpers.paths import REPO
from tests.helpers.training import tiny_args


def test_a_second_job_in_a_run_dir_is_refused(seed_shards, tmp_path, capsys):
    args = tiny_args(seed_shards["trimmed"], tmp_path / "run")
    (tmp_path / "run").mkdir()
    with files.hold(tmp_path / "run"):
        assert cli.main(args) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"lpo: error: {tmp_path / 'run'}: another process is writing to it (process ")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_without_locks_the_job_that_was_started_last_goes_on(seed_shards, tmp_path, capsys, monkeypatch):
    """As in a bucket: the older job notices it before its next checkpoint, and writes nothing more."""
    monkeypatch.setattr(files, "hold", contextlib.nullcontext)
    save, steps = Checkpoints.save, []

    def save_and_start_another(self, state, progress, heldout):
        save(self, state, progress, heldout)
        steps.append(progress.total_step)
        run_dir.Claim(epath.Path(tmp_path))

    monkeypatch.setattr(Checkpoints, "save", save_and_start_another)
    args = tiny_args(seed_shards["trimmed"], tmp_path, "checkpoint_every_steps=2", "eval_every_steps=0")
    assert cli.main(args) == 2
    assert "the run was started again at " in capsys.readouterr().err
    assert steps == [2] and [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_2"]
    monkeypatch.setattr(Checkpoints, "save", save)
    assert cli.main(args) == 0, "started again it goes on, and nobody had to unlock anything"
    assert json.loads((tmp_path / "summary.json").read_text())


@pytest.mark.parametrize("change", ["stages.lpo.objective.beta=5", "seed=3"])
def test_a_run_of_another_config_is_refused_by_the_settings_that_differ(tmp_path, change):
    mine, file = load(REPO / "configs/tiny_cpu.yaml", []), tmp_path / "config.json"
    for more in ("log_every_steps=7", change):
        file.write_text(json.dumps(to_dict(load(REPO / "configs/tiny_cpu.yaml", [more]))))
        if more != change:
            run_dir.check_owner(file, mine, "runs/x")
    with pytest.raises(
        ConfigError,
        match=rf"^runs/x holds a run with other settings; .*: {change.partition('=')[0]}: {change[-1]}(\.0)? there, \d(\.0)? here$",
    ):
        run_dir.check_owner(file, mine, "runs/x")
