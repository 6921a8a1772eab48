"""What a run leaves to read while it goes on: metrics.jsonl, and the same numbers with its trackers."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import jax

from foundation.files import Json, is_bucket, read_journal, write_text
from lpo_jax.train.track import End, Tracker

_PLACE = "stage", "group", "step", "total_step"


class MetricLog:
    """Writes a line a step to metrics.jsonl, and one for each evaluation, and hands them on to trackers; silent on all but the first process.

    Lines beyond `resume_step` (-1: there are none) are dropped: those steps are done again. A tracker gets what it lacks of the others, and
    nothing that it has. In a bucket, where nothing can be appended to, metrics.jsonl is rewritten by `sync`.
    """

    def __init__(self, run_dir: Path, resume_step: int, trackers: Sequence[Tracker] = ()):
        self._first = jax.process_index() == 0
        if not self._first:
            return
        self._path, self._file, self._trackers = run_dir / "metrics.jsonl", None, trackers
        self._step, self._values = -1, dict[str, float]()
        self._end: End | None = None
        rows = [row for row in read_journal(self._path, {"total_step": int}) if row["total_step"] <= resume_step]
        self._lines = [json.dumps(row) + "\n" for row in rows]
        write_text(self._path, "".join(self._lines))
        if not is_bucket(run_dir):
            self._file = open(self._path, "a", buffering=1)  # noqa: SIM115
        self._there = {(row["group"], row["total_step"]) for row in rows}
        for row in rows:
            self._track(row)

    def write(self, stage: str, step: int, total_step: int, values: dict[str, float], group: str = "train") -> None:
        """Log what is finite of `values`: JSON has no other numbers. What is there already, as an evaluation that is repeated, stays as it is."""
        if not self._first or (group, total_step) in self._there:
            return
        self._there.add((group, total_step))
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        row: Json = {"stage": stage, "group": group, "step": step, "total_step": total_step} | values
        self._lines.append(json.dumps(row) + "\n")
        if self._file is not None:
            self._file.write(self._lines[-1])
        self._track(row)

    def _track(self, row: Json) -> None:
        """A step of training and its evaluation are one step to a tracker, sent when the next one begins: a kill then leaves it out, or has all of it."""
        if row["total_step"] != self._step:
            self._send()
        self._step = row["total_step"]
        self._values |= {f"{row['group']}/{name}": value for name, value in row.items() if name not in _PLACE}

    def _send(self) -> None:
        for tracker in self._trackers:
            if self._values and self._step > tracker.held:
                tracker.log(self._step, self._values)
        self._values = {}

    def sync(self) -> None:
        """Have all lines on the disk; a checkpoint is saved only after its steps' lines."""
        if not self._first:
            return
        if self._file is None:
            write_text(self._path, "".join(self._lines))
        else:
            os.fsync(self._file)
        for tracker in self._trackers:
            tracker.sync()

    def finish(self, end: End) -> None:
        """The run is finished: tell the trackers when this log is closed."""
        if self._first:
            self._send()
            self._end = end

    def close(self) -> None:
        """Of a run that was stopped the last step isn't sent, which an evaluation may still belong to: going on sends it."""
        self.sync()
        if self._first:
            if self._file is not None:
                self._file.close()
            for tracker in self._trackers:
                tracker.close(self._end)
