"""What a run leaves to read: metrics.jsonl, TensorBoard files and summary.json."""

import json
import math
import os
from pathlib import Path
from typing import Any, TypeVar

import jax

from lpo_jax.objectives import Terms

T = TypeVar("T")

ENGLISH = {
    "pair_accuracy": "share of held-out pairs whose secure side is likelier than the vulnerable one on the changed tokens "
    "(mean log-probability); over the pairs that change tokens on both sides",
    "margin": "mean over the same pairs of that difference in log-probability, in nats a token",
    "changed_nll": "mean negative log-likelihood of a changed token of the secure side, in nats",
    "unchanged_nll": "mean negative log-likelihood of every other answer token of the secure side, in nats: what must not get worse",
}
"""The names in summary.json, in plain English."""

HIGHER_IS_BETTER = {"pair_accuracy": True, "margin": True, "changed_nll": False, "unchanged_nll": False}


def means(terms: Terms) -> dict[str, float]:
    """(sum, weight) pairs to means; a term without weight is left out."""
    return {name: float(total) / float(weight) for name, (total, weight) in terms.items() if weight > 0}


def add(total: Terms | None, terms: Terms) -> Terms:
    """Sum of (sum, weight) pairs over batches."""
    return terms if total is None else {name: (total[name][0] + s, total[name][1] + w) for name, (s, w) in terms.items()}


def fetch(x: T) -> T:
    """Arrays on the host, once *all* devices here are done with the program that computes them.

    `device_get` waits for one device. On CPU, where a small program may overtake one that is running, the next program's collectives
    would then mix with the last one's.
    """
    return jax.device_get(jax.block_until_ready(x))


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
        self._lines = [line for line in _whole_lines(self._path) if json.loads(line)["total_step"] <= resume_step]
        write_atomically(self._path, "".join(line + "\n" for line in self._lines))
        if not is_bucket(run_dir):
            from tensorboardX import SummaryWriter  # slow, and it pulls in torch where that is installed

            self._file = open(self._path, "a", buffering=1)  # noqa: SIM115
            self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, stage: str, step: int, total_step: int, values: dict[str, float], group: str = "train") -> None:
        """Log what is finite of `values`: JSON has no other numbers."""
        if not self._first:
            return
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        self._lines.append(json.dumps({"stage": stage, "group": group, "step": step, "total_step": total_step} | values))
        if self._file is not None and self._board is not None:
            self._file.write(self._lines[-1] + "\n")
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, total_step)

    def sync(self) -> None:
        """Have all lines on the disk; a checkpoint is saved only after its steps' lines."""
        if not self._first:
            return
        if self._file is None:
            write_atomically(self._path, "".join(line + "\n" for line in self._lines))
        else:
            os.fsync(self._file)

    def close(self) -> None:
        self.sync()
        if self._first and self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in _whole_lines(run_dir / "metrics.jsonl")]


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step: a reader, or a crash, sees the old text or the new one."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def is_bucket(path: Path) -> bool:
    """Whether a run directory is in a bucket (gs://...)."""
    return "://" in str(path)


def _whole_lines(path: Path) -> list[str]:
    """Lines that end in a newline: a killed process may leave half a one."""
    text = path.read_text() if path.is_file() else ""
    return text[: text.rfind("\n") + 1].splitlines()
