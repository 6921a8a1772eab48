"""Trackers: where a run's numbers are looked at while it goes on. metrics.jsonl has them all; a tracker is brought to where that stands.

Each tracker says up to which step it holds the run (`held`), and has three methods: `log` a step, `sync` to the disk, `close`. Steps come in their
order, each once and whole, so that what a tracker has is a beginning of the run: one that a kill has cut short is sent the rest of it.
"""

import contextlib
import importlib.util
import io
import json
import os
import secrets
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import yaml
from etils import epath

from foundation.errors import ConfigError, installing
from foundation.files import Json, is_bucket, read_object, write_json
from lpo_jax.config import RunConfig, to_dict
from lpo_jax.objectives.heldout import ENGLISH

PROJECT = "lpo-jax"
"""The project that runs are tracked in, where WANDB_PROJECT or TRACKIO_PROJECT names no other."""

_ID = "track.json"


@dataclass(frozen=True)
class Run:
    """What is tracked."""

    directory: epath.Path
    id: str  # the same whenever the run goes on
    config: Json
    resumed: int  # the step that it goes on from; -1: it begins

    @property
    def name(self) -> str:
        return self.directory.absolute().name


@dataclass(frozen=True)
class End:
    """What a finished run has come to."""

    step: int  # steps of the whole run
    summary: Mapping[str, Mapping[str, float]]  # held-out metrics of "init" and after each stage
    page: epath.Path  # report.html
    model: str  # where the trained weights are

    def table(self) -> list[list[Any]]:
        """The summary: a row for each evaluation, its name first and then the metrics of ENGLISH, None where there is none."""
        return [[name, *(row.get(column) for column in ENGLISH)] for name, row in self.summary.items()]


class Tracker(Protocol):
    held: int
    """the last step that it has; -1: none"""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take a step's numbers, by names like train/loss and heldout/margin. Steps come in their order."""

    def sync(self) -> None:
        """Have all that was logged where a kill doesn't reach it, if that can be had."""

    def close(self, end: End | None) -> None:
        """The run is over; None: it was stopped, and may go on later."""


class TensorBoard:
    """Event files in the run's directory. What lies at the step that a run goes on from, or beyond, is marked as void and logged again.

    They are written on a disk; those of a bucket are copied there by `sync`. tensorboardX's SummaryWriter writes in a thread that its `flush` doesn't
    wait for: a kill would lose what a checkpoint stands behind. So events go to the file directly.
    """

    def __init__(self, run: Run):
        from tensorboardX.event_file_writer import EventsWriter  # slow, and it pulls in torch where that is installed
        from tensorboardX.proto.event_pb2 import SessionLog

        place = run.directory / "tensorboard"
        self._staged = tempfile.TemporaryDirectory() if is_bucket(run.directory) else None
        self._place, here = place, Path(self._staged.name) if self._staged else Path(place)
        # The step that a run goes on from is sent behind its checkpoint: a kill in between leaves it out.
        self.held = run.resumed - 1 if place.exists() and any(place.iterdir()) else -1
        here.mkdir(parents=True, exist_ok=True)
        self._writer, self._flushed = (
            EventsWriter(str(here / "events"), f".{time.time_ns()}"),
            0.0,
        )  # TensorBoard reads files by their names' order
        self._add(self.held + 1, session_log=SessionLog(status=SessionLog.START))
        if self.held < 0:
            self._text("config", f"```yaml\n{yaml.safe_dump(run.config, sort_keys=False)}```", 0)

    def _add(self, step: int, **what: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), step=step, **what))
        if time.monotonic() > self._flushed + 10:
            self._writer.flush()
            self._flushed = time.monotonic()

    def _text(self, name: str, text: str, step: int) -> None:
        from tensorboardX import summary

        self._add(step, summary=summary.text(name, text))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        self._add(step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]))

    def sync(self) -> None:
        self._writer.flush()
        if self._staged:
            self._place.mkdir(parents=True, exist_ok=True)
            for file in Path(self._staged.name).iterdir():
                (self._place / file.name).write_bytes(file.read_bytes())

    def close(self, end: End | None) -> None:
        if end and end.step + 1 > self.held:
            head = ["after", *ENGLISH]
            rows = [head, ["---"] * len(head), *([name, *(f"{v:.4f}" if v is not None else "" for v in row)] for name, *row in end.table())]
            self._text("heldout", "\n".join(f"| {' | '.join(row)} |" for row in rows), end.step + 1)
            self._text("model", f"{end.model}; its report: {end.page}", end.step + 1)
        self.sync()
        self._writer.close()
        if self._staged:
            self._staged.cleanup()


class Wandb:
    """Weights & Biases, online or, with WANDB_MODE=offline, in files for `wandb sync`: a part for each time that the run was started."""

    def __init__(self, run: Run):
        import wandb

        # Neither what is printed, nor source code or the machine's state, goes anywhere.
        quiet = wandb.Settings(
            console="off", silent=True, disable_git=True, disable_code=True, save_code=False, x_disable_stats=True, x_disable_meta=True
        )
        place = None if is_bucket(run.directory) else str(run.directory)
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        try:
            self._run = wandb.init(project=project, id=run.id, name=run.name, dir=place, config=run.config, resume="allow", settings=quiet)
        except wandb.errors.Error as error:
            said = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"track: wandb can't begin ({said}); `wandb login`, set WANDB_MODE=offline, or take wandb out of track"
            ) from None
        self._wandb = wandb
        self.held = self._run.starting_step - 1
        if self._run.offline and place:
            files = sorted(Path(place, "wandb").glob(f"offline-run-*-{run.id}/run-{run.id}.wandb"))
            self.held = max((step for file in files for step, _ in read_wandb(file)), default=-1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def sync(self) -> None:
        """wandb writes in a process of its own, which nobody can wait for."""

    def close(self, end: End | None) -> None:
        if end:
            self._run.summary["model"] = end.model
            if end.step + 1 > self.held:
                table = self._wandb.Table(["after", *ENGLISH], end.table())
                page = self._wandb.Html(end.page.read_text(), inject=False)
                self._run.log({"heldout": table, "report": page}, step=end.step + 1)
        self._run.finish(exit_code=0 if end else 1)


def read_wandb(file: Path) -> Iterator[tuple[int, Json]]:
    """The steps, with their values, that a file of wandb holds. It may be cut short.

    The format is LevelDB's log behind a header of 7 bytes: blocks of 32 KiB with parts of records, each with checksum, length and kind (whole,
    first, middle, last). Nothing that wandb offers reads it offline.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    raw, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", raw[at : at + 7])
        at += 7
        if kind == 0 or at + length > len(raw):
            return
        record = (b"" if kind in (1, 2) else record) + raw[at : at + length]
        at += length
        if kind in (1, 4):
            history = Record.FromString(record).history
            values = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in history.item}
            if values:
                yield history.step.num, values


class Trackio:
    """Trackio: a database on this machine (TRACKIO_DIR), a Space (TRACKIO_SPACE_ID) or a server (TRACKIO_SERVER_URL)."""

    def __init__(self, run: Run):
        with contextlib.redirect_stdout(io.StringIO()):
            import trackio

            self._trackio, project = trackio, os.environ.get("TRACKIO_PROJECT", PROJECT)
            # Only the name tells runs apart there.
            self._run = trackio.init(
                project, f"{run.name}-{run.id}", config=run.config, resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False
            )
        self.held = self._run._next_step - 1  # asked of the database, or of the server

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def sync(self) -> None:
        """Trackio writes twice a second by itself."""

    def close(self, end: End | None) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            if end and end.step + 1 > self.held:
                table = self._trackio.Table(columns=["after", *ENGLISH], data=end.table())
                page = self._trackio.Html(end.page.read_text())
                self._run.log({"heldout": table, "report": page, "model": end.model}, step=end.step + 1)
            self._trackio.finish()  # the run's own would be done a second time at the process's end, and say so


TRACKERS: dict[str, Callable[[Run], Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}


def check(config: RunConfig) -> None:
    """Refuse a tracker whose package isn't here.

    Raises:
      ConfigError: it isn't.
    """
    for name in config.track:
        package = "tensorboardX" if name == "tensorboard" else name
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"track: the package {package!r} is missing here; {installing(package)}, or take {name} out of track")


def open_trackers(config: RunConfig, directory: epath.Path, resumed: int) -> list[Tracker]:
    """The trackers of a run that goes on from step `resumed` (-1: it begins); none but in the first process.

    Raises:
      ConfigError: one can't begin.
    """
    if jax.process_index() > 0:
        return []
    if not (kept := read_object(directory / _ID)):
        write_json(directory / _ID, kept := {"id": secrets.token_hex(4)})
    run = Run(directory, kept["id"], to_dict(config), resumed)
    return [TRACKERS[name](run) for name in config.track]
