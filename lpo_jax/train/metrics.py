"""What a run leaves to read: metrics.jsonl, TensorBoard files and summary.json."""

import json
import os
from pathlib import Path
from typing import Any

import jax

from lpo_jax.objectives import Terms

ENGLISH = {
    "pair_accuracy": "share of held-out pairs whose secure side is likelier than the vulnerable one on the changed tokens "
    "(mean log-probability); over the pairs that change tokens on both sides",
    "margin": "mean over the same pairs of that difference in log-probability, in nats a token",
    "changed_nll": "mean negative log-likelihood of a changed token of the secure side, in nats",
    "unchanged_nll": "mean negative log-likelihood of every other answer token of the secure side, in nats: what must not get worse",
}
"""The names in summary.json, in plain English."""


def means(terms: Terms) -> dict[str, float]:
    """(sum, weight) pairs to means; a term without weight is left out."""
    return {name: float(total) / float(weight) for name, (total, weight) in jax.device_get(terms).items() if weight > 0}


def add(total: Terms | None, terms: Terms) -> Terms:
    """Sum of (sum, weight) pairs over batches."""
    return terms if total is None else {name: (total[name][0] + s, total[name][1] + w) for name, (s, w) in terms.items()}


class MetricLog:
    """Writes one line a step to metrics.jsonl and the same numbers to TensorBoard; silent on all but the first process."""

    def __init__(self, run_dir: Path, resume_step: int):
        self._first = jax.process_index() == 0
        if not self._first:
            return
        from tensorboardX import SummaryWriter  # slow, and it pulls in torch where that is installed

        path = run_dir / "metrics.jsonl"
        kept = [line for line in _whole_lines(path) if json.loads(line)["total_step"] <= resume_step]
        write_atomically(path, "".join(line + "\n" for line in kept))
        self._file = open(path, "a", buffering=1)  # noqa: SIM115
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, stage: str, step: int, total_step: int, values: dict[str, float], group: str = "train") -> None:
        if not self._first:
            return
        self._file.write(json.dumps({"stage": stage, "group": group, "step": step, "total_step": total_step} | values) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{group}/{name}", value, total_step)

    def close(self) -> None:
        if self._first:
            self._file.close()
            self._board.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in _whole_lines(run_dir / "metrics.jsonl")]


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step: a reader, or a crash, sees the old text or the new one."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def _whole_lines(path: Path) -> list[str]:
    """Lines that end in a newline: a killed process may leave half a one."""
    text = path.read_text() if path.is_file() else ""
    return text[: text.rfind("\n") + 1].splitlines()
