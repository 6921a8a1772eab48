"""Trackers hold what metrics.jsonl holds, each step once, after kills too; and nothing that is secret."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lpo_jax import cli, config
from lpo_jax.config import ConfigError
from lpo_jax.train import track
from lpo_jax.train.metrics import MetricLog
from tests.helpers import tracked
from tests.helpers.paths import REPO, TINY
from tests.helpers.training import start, tiny_args

SECRET = "hf_" + "never" * 5
OTHERS = [name for name in ("wandb", "trackio") if importlib.util.find_spec(name)]
HERE = ["tensorboard", *OTHERS]

PART = """if True:
    import os, pathlib, sys, time
    from etils import epath
    from lpo_jax import config
    from lpo_jax.train import track
    from lpo_jax.train.metrics import MetricLog
    place, names, resumed, last, ending = sys.argv[1:]
    directory, resumed, last = epath.Path(place), int(resumed), int(last)
    run = config.load("configs/tiny_cpu.yaml", [f"run_dir={place}", f"track=[{names}]"])
    log = MetricLog(directory, resumed, track.open_trackers(run, directory, resumed))
    for step in range(resumed + 1, last + 1):
        if step:
            log.write("sft", step, step, {"loss": 1 / step})
        if step % 4 == 0:
            log.write("sft", step, step, {"margin": step / 8}, group="heldout")
        if step % 5 == 0:
            log.sync()
        time.sleep(float(os.environ["PAUSE"]))
    if ending == "kill":
        os.kill(os.getpid(), 9)
    if ending == "finish":
        (directory / "report.html").write_text("<!doctype html><p>all of it</p>")
        summary = {"init": {"margin": 0.0}, "sft": {"margin": 2.5}}
        log.finish(track.End(last, summary, directory / "report.html", f"{directory}/checkpoints/step_{last}"))
    log.close()
"""


def part(directory, names, resumed, last, ending, pause=0.0, environment=None):
    """Steps resumed + 1 .. last of a run, in a process that ends as is said."""
    env = (
        os.environ | {"WANDB_MODE": "offline", "TRACKIO_DIR": str(directory.parent / "trackio"), "PAUSE": str(pause)} | (environment or {})
    )
    words = [sys.executable, "-c", PART, str(directory), names, str(resumed), str(last), ending]
    found = subprocess.run(words, env=env | {"PYTHONPATH": str(REPO)}, cwd=REPO, capture_output=True, text=True)
    assert found.returncode == (-signal.SIGKILL if ending == "kill" else 0), found.stderr
    return found.stdout + found.stderr


def held(name, run_dir):
    return getattr(tracked, name)(run_dir.parent / "trackio" if name == "trackio" else run_dir)


def assert_holds(name, run_dir, end=None):
    """The tracker has metrics.jsonl's steps, and behind them, of a finished run, the table, the page and the model's address. Of a run that
    was stopped it lacks the last: an evaluation may be to come."""
    found, expected = held(name, run_dir), tracked.logged(run_dir)
    if end is None:
        expected.pop(max(expected))
    more = {step: found.pop(step) for step in sorted(found.keys() - expected.keys())}
    assert list(found) == sorted(expected)
    for step, values in expected.items():
        for rate in ("train/tokens_per_s",):  # of a step that was computed twice, one of the two
            assert (values.pop(rate, None) is None) == (found[step].pop(rate, None) is None)
        assert found[step] == pytest.approx(values, rel=1e-6)
    assert name == "tensorboard" or list(more) == ([] if end is None else [end + 1])


class Recorder:
    def __init__(self, held):
        self.held, self.steps, self.end = held, {}, "open"

    def log(self, step, values):
        assert step > max(self.steps, default=self.held)
        self.steps[step] = values

    def sync(self):
        pass

    def close(self, end):
        self.end = end


def test_each_tracker_is_sent_what_it_lacks_and_a_step_as_a_whole(tmp_path):
    log = MetricLog(tmp_path, -1, [first := Recorder(-1)])
    log.write("init", 0, 0, {"margin": 0.0}, group="heldout")
    for step in (1, 2, 3):
        log.write("sft", step, step, {"loss": step, "grad_norm": float("nan")})
    assert list(first.steps) == [0, 1, 2], "an evaluation of step 3 may be to come"
    log.write("sft", 3, 3, {"margin": 0.5}, group="heldout")
    log.close()
    assert list(first.steps) == [0, 1, 2] and first.end is None
    behind, ahead, new = Recorder(0), Recorder(4), Recorder(-1)
    log = MetricLog(tmp_path, 3, [behind, ahead, new])
    log.write("sft", 3, 3, {"margin": 0.5}, group="heldout")  # repeated where the run goes on from
    for step in (4, 5):
        log.write("sft", step, step, {"loss": step})
    log.finish(end := track.End(5, {}, tmp_path / "report.html", "there"))
    log.close()
    assert (list(behind.steps), list(ahead.steps), list(new.steps)) == ([1, 2, 3, 4, 5], [5], [0, 1, 2, 3, 4, 5])
    assert new.steps == tracked.logged(tmp_path) and new.steps[3] == {"train/loss": 3, "heldout/margin": 0.5}
    assert behind.end is end


@pytest.mark.slow
@pytest.mark.parametrize("name", HERE)
def test_killed_and_gone_on_it_holds_each_step_once(name, tmp_path):
    """Of the steps behind the checkpoint that a run goes on from, some were logged before the kill: they aren't logged twice. Those that the
    tracker lost with the kill aren't missing."""
    run = tmp_path / "run"
    said = part(run, name, -1, 13, "kill", pause=0.05)
    said += part(run, name, 10, 17, "kill")  # at once: most of it is lost
    said += part(run, name, 15, 20, "stop")
    assert_holds(name, run)
    said += part(run, name, 20, 24, "finish")
    said += part(run, name, 24, 24, "finish")  # a finished run is only reported again
    assert_holds(name, run, 24)
    assert set(tracked.logged(run)) == set(range(25))
    assert said == "", "trackers greet nobody"


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_one_that_comes_later_is_sent_the_whole_run(name, tmp_path):
    run = tmp_path / "run"
    part(run, "", -1, 6, "stop")
    part(run, name, 6, 9, "finish")
    assert_holds(name, run, 9)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_table_page_and_the_models_address_are_there(name, tmp_path):
    run = tmp_path / "run"
    part(run, name, -1, 5, "finish")
    last = json.dumps(held(name, run)[6])
    files = list((tmp_path if name == "trackio" else run / "wandb").rglob("*.html"))
    assert "all of it" in "".join(file.read_text() for file in files if file.name != "report.html") or "all of it" in last
    if name == "wandb":
        (table,) = (run / "wandb").rglob("*.table.json")
        last = table.read_text()
        rows = json.loads(last)
        assert rows["columns"][0] == "after" and [row[0] for row in rows["data"]] == ["init", "sft"]
        assert any(b"checkpoints/step_5" in file.read_bytes() for file in (run / "wandb").rglob("*.wandb"))
    else:
        assert "checkpoints/step_5" in last
    assert "init" in last and "2.5" in last


def test_of_a_bucket_tensorboards_files_are_there_from_each_checkpoint_on(tmp_path, monkeypatch):
    monkeypatch.setattr(track, "is_bucket", lambda _: True)
    run = config.load(TINY, [f"run_dir={tmp_path}"])
    (board,) = track.open_trackers(run, tmp_path, -1)
    for step in (1, 2, 3):
        board.log(step, {"train/loss": 1 / step})
    assert not (tmp_path / "tensorboard").exists()
    board.sync()
    assert list((tmp_path / "tensorboard").iterdir())
    assert tracked.tensorboard(tmp_path) == {step: {"train/loss": pytest.approx(1 / step)} for step in (1, 2, 3)}
    board.close(None)
    (again,) = track.open_trackers(run, tmp_path, 2)
    for step in (2, 3):  # the step that it goes on from is sent again
        again.log(step, {"train/loss": 7.0})
    again.close(None)
    assert tracked.tensorboard(tmp_path) == {1: {"train/loss": 1.0}, 2: {"train/loss": 7.0}, 3: {"train/loss": 7.0}}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_no_key_reaches_a_tracker(name, tmp_path):
    keys = {"HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET.ljust(40, "0"), "OPENAI_API_KEY": SECRET}
    said = part(tmp_path / "run", name, -1, 4, "finish", environment=keys)
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert written and SECRET not in said
    assert [file for file in written if SECRET.encode() in file.read_bytes()] == []


def test_a_missing_package_is_said_before_anything_is_read(seed_shards, tmp_path, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name))
    assert cli.main(tiny_args(seed_shards["trimmed"], tmp_path / "run", "track=[tensorboard,wandb]")) == 2
    assert "track: the package 'wandb' is missing here; " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_tracker_is_named_once():
    with pytest.raises(ConfigError, match="track: a tracker stands there twice"):
        config.load(TINY, ["track=[wandb,wandb]"])
    assert config.load(TINY, ["track=[]"]).track == ()


@pytest.mark.slow
def test_a_run_that_is_killed_is_tracked_as_one(seed_shards, tmp_path, monkeypatch):
    """The whole of it: `lpo train`, kill -9 in its midst, and the same command again."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run, more = tmp_path / "run", f"track=[{','.join(HERE)}]"
    killed = start(seed_shards["trimmed"], run, more)
    until = time.time() + 200
    while killed.poll() is None and time.time() < until:
        if (run / "metrics.jsonl").is_file() and len((run / "metrics.jsonl").read_text().splitlines()) >= 14:
            break
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    resumed = start(seed_shards["trimmed"], run, more)
    text, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, text
    assert set(tracked.logged(run)) == set(range(21))
    for name in HERE:
        assert_holds(name, run, 20)
