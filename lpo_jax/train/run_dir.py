"""A run's directory: whose it is, and whether a run can live there. It may be a bucket (gs://...).

config.json  data.json  data_STAGE_N.json  owner.json  track.json  metrics.jsonl  tensorboard/  wandb/  eval/  checkpoints/  summary.json  report.html
"""

import dataclasses
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
from etils import epath

from data_pipeline.shards import Manifest
from foundation import files
from foundation.errors import DataError
from foundation.files import Json, is_bucket
from lpo_jax.config import ConfigError, RunConfig, from_dict, to_dict
from lpo_jax.train.distributed import all_or_none, first_problem, sees_first
from lpo_jax.train.stop import TrainingError

_OWNER = "owner.json"

# What may change without changing the parameters; the shards are compared by their content.
_FREE = {
    "run_dir", "data", "mesh", "plan", "log_every_steps", "checkpoint_every_steps", "keep_checkpoints", "best_metric", "max_skipped_steps",
    "eval_rows", "report_pairs", "profile", "track",
}  # fmt: skip


class Claim:
    """A run's directory, while this job writes to it.

    On a disk a lock keeps other jobs out. Buckets have none: there the job that was started last owns the directory, as after a
    preemption, and the one before notices it when it saves.
    """

    def __init__(self, directory: epath.Path):
        self.directory = directory
        self._start = {
            "token": secrets.token_hex(8),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "time": time.strftime("%F %T%z"),
        }
        if jax.process_index() == 0:
            files.write_json(directory / _OWNER, self._start)

    def check(self) -> None:
        """Raise TrainingError if the directory is another job's now. All processes call it together."""
        problem = None
        if jax.process_index() == 0 and (file := self.directory / _OWNER).exists() and (now := json.loads(file.read_text())) != self._start:
            problem = (
                f"{self.directory}: the run was started again at {now['time']} by process {now['process']} on {now['host']}, and goes on there; "
                "this job stops"
            )
        if problem := first_problem(problem):
            raise TrainingError(problem)


@contextmanager
def claimed(config: RunConfig, manifest: Manifest, own: Mapping[str, Sequence[Manifest]], checkpoint_bytes: int) -> Iterator[Claim]:
    """Make `config.run_dir` this config's, or check that it is, and that checkpoints can be written there. All processes call it together.

    Args:
      manifest: of the run's data.
      own: of the sets of each stage that has data of its own.
      checkpoint_bytes: what one checkpoint takes, at most.

    Raises:
      ConfigError: it is another config's, can't be written, isn't seen by all processes, or has too little space.
      DataError: another job is writing to it.
    """
    run_dir = epath.Path(config.run_dir)
    with ExitStack() as held:
        with all_or_none():
            if jax.process_index() == 0:
                try:
                    (run_dir / "eval").mkdir(parents=True, exist_ok=True)
                    if not is_bucket(run_dir):
                        held.enter_context(files.hold(Path(run_dir)))
                    _probe(run_dir)
                except DataError:
                    raise
                except Exception as error:  # noqa: BLE001 (a bucket's errors are its library's)
                    raise ConfigError(f"run_dir {run_dir} can't be written: {reason(error)}") from None
                check_owner(run_dir / "config.json", config, str(run_dir))
                _check_space(run_dir, config, checkpoint_bytes)
        if jax.process_count() > 1:
            _check_shared(run_dir)
        if jax.process_index() == 0 and not (run_dir / "config.json").exists():
            files.write_json(run_dir / "data.json", dataclasses.asdict(manifest))
            for stage, sets in own.items():
                for index, one in enumerate(sets):
                    files.write_json(run_dir / stage_data(stage, index), dataclasses.asdict(one))
            files.write_json(run_dir / "config.json", to_dict(config))
        yield Claim(run_dir)


def stage_data(stage: str, index: int) -> str:
    """Where a run's directory holds the manifest of one of a stage's own shard sets, as data.json is that of the run's."""
    return f"data_{stage}_{index}.json"


def _differing(file: epath.Path | Path, config: RunConfig) -> tuple[Json, Json]:
    """Those settings in which the run that a config.json belongs to, and this one, differ: the file's, and this config's.

    Raises:
      DataError, ConfigError: the file is damaged.
    """

    def facts(config: RunConfig) -> Json:
        """Its settings, but for the stages' shards, which are compared by their content as the run's are, where a reference is kept, and what
        computes the attention."""
        found = to_dict(config)
        found["model"]["attention"] = "auto"
        for stage in found["stages"].values():
            stage["data"] = None
            stage["objective"].pop("reference", None)
        return found

    def with_defaults(written: Json) -> Json:
        """Keys that came later stand at their defaults."""
        return facts(from_dict(RunConfig, written, str(file)))

    if not (differ := files.differing(file, facts(config), _FREE, with_defaults)):
        return {}, {}
    theirs, ours, names = with_defaults(files.read_object(file)), facts(config), dict.fromkeys(name.partition(".")[0] for name in differ)
    return {name: theirs.get(name) for name in names}, {name: ours.get(name) for name in names}


def check_owner(file: epath.Path | Path, config: RunConfig, place: str) -> None:
    """Refuse a run_dir (`place`) whose config.json (`file`) is another run's.

    Raises:
      DataError, ConfigError: it is, with the settings that differ; or the file is damaged.
    """
    if lines := files.differences(*_differing(file, config)):
        raise ConfigError(f"{place} holds a run with other settings; choose a new run_dir, or delete it: {'; '.join(lines)}")


def _probe(run_dir: epath.Path) -> None:
    """Write a file, read it and delete it."""
    file = run_dir / "write_probe"
    file.write_text("probe")
    if file.read_text() != "probe":
        raise OSError("what is written can't be read back")
    file.unlink()


def checkpoints_at_once(config: RunConfig) -> int:
    """How many checkpoints there are at most: the kept ones, the best one and the one being written."""
    return config.keep_checkpoints + 2


def _check_space(run_dir: epath.Path, config: RunConfig, checkpoint_bytes: int) -> None:
    """These checkpoints must fit, beside what lies there already. A bucket has no end."""
    if is_bucket(run_dir):
        return
    there = sum(file.stat().st_size for file in Path(run_dir, "checkpoints").rglob("*") if file.is_file())
    count = checkpoints_at_once(config)
    missing = count * checkpoint_bytes - there - shutil.disk_usage(run_dir).free
    if missing > 0:
        raise ConfigError(
            f"run_dir {run_dir}: {count} checkpoints (keep_checkpoints, the best and the one being written) of {checkpoint_bytes / 1e9:.3g} GB "
            f"don't fit: {missing / 1e9:.3g} GB too little free; make room, choose another run_dir or lower keep_checkpoints"
        )


def _check_shared(run_dir: epath.Path) -> None:
    """Each process writes its part of a checkpoint: all must see what process 0 writes."""
    seen = sees_first(run_dir)
    with all_or_none():
        if not seen:
            raise ConfigError(
                f"run_dir {run_dir} isn't the directory here that it is on process 0: several processes need a shared disk or a bucket (gs://...)"
            )


def reason(error: Exception) -> str:
    """What went wrong, on one line; of what the operating system said, only that."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error) or repr(error)
    code = re.search(r"os_error_code='(\d+)'", text)  # tensorstore's way to say it
    return os.strerror(int(code[1])) if code else text.splitlines()[0]
