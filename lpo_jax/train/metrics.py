"""What a run leaves to read while it goes on: metrics.jsonl and TensorBoard files."""

import json
import math
import os
from pathlib import Path

import jax

from foundation.files import is_bucket, read_journal, write_text


class MetricLog:
    """Writes one line a step to metrics.jsonl and the same numbers to TensorBoard; silent on all but the first process.

    Lines beyond `resume_step` are dropped: those steps are done again. In a bucket, where nothing can be appended to, metrics.jsonl is
    rewritten by `sync`, and there is no TensorBoard.
    """

    def __init__(self, run_dir: Path, resume_step: int):
        self._first = jax.process_index() == 0
        if not self._first:
            return
        self._path, self._board, self._file = run_dir / "metrics.jsonl", None, None
        self._lines = [json.dumps(row) + "\n" for row in read_journal(self._path, {"total_step": int}) if row["total_step"] <= resume_step]
        write_text(self._path, "".join(self._lines))
        if not is_bucket(run_dir):
            from tensorboardX import SummaryWriter  # slow, and it pulls in torch where that is installed

            self._file = open(self._path, "a", buffering=1)  # noqa: SIM115
            self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, stage: str, step: int, total_step: int, values: dict[str, float], group: str = "train") -> None:
        """Log what is finite of `values`: JSON has no other numbers."""
        if not self._first:
            return
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        self._lines.append(json.dumps({"stage": stage, "group": group, "step": step, "total_step": total_step} | values) + "\n")
        if self._file is not None and self._board is not None:
            self._file.write(self._lines[-1])
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, total_step)

    def sync(self) -> None:
        """Have all lines on the disk; a checkpoint is saved only after its steps' lines."""
        if not self._first:
            return
        if self._file is None:
            write_text(self._path, "".join(self._lines))
        else:
            os.fsync(self._file)

    def close(self) -> None:
        self.sync()
        if self._first and self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()
