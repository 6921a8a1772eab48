"""What pieces have found, as it is kept in the tree: docs/results/SIZE/PIECE/, from which the page is made by anybody.

  subject.json           which model and which pairs a size is about
  larger.json            which model the small one steers
  PIECE/piece.json       its key, what it took, and on what
  PIECE/samples.jsonl.gz, run.json     of an evaluation: `lpo-eval run`'s, without the benchmark's own texts, and without how long a test took
  PIECE/training.json.gz of a training: its curve, and of each development pair the sums of log-probabilities before and after

What took time and chance stands in piece.json alone: two runs of a campaign have every other file in common, byte for byte.
"""

import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from evaluation.measures import state, works
from evaluation.runs import Run
from foundation.errors import DataError
from foundation.files import Json, read_journal, read_json, read_object, replaced, write_json

_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")
"""Where an object happened to lie, in what a test says of it."""
_CURVE = ("stage", "group", "step", "total_step", "loss", "lr", "grad_norm")
_HELDOUT = ("pair_accuracy", "margin", "changed_nll", "unchanged_nll")


@dataclass(frozen=True)
class Results:
    """Those of one size."""

    root: Path
    size: str

    @property
    def directory(self) -> Path:
        return self.root / self.size

    def facts(self, what: str = "subject") -> Json:
        """What the size is about, or which model the "larger" one is; {}: nothing has run yet that reads it."""
        return read_object(self.directory / f"{what}.json")

    def record(self, name: str) -> Json:
        """A piece's piece.json; {}: it hasn't been done."""
        return read_object(self.directory / name / "piece.json")

    def done(self, name: str, key: str) -> bool:
        """Whether a piece was done as it is declared now."""
        return self.record(name).get("key") == key

    def keep(self, name: str, key: str, took: Json, found: dict[str, bytes]) -> None:
        """Put down what a piece has found; piece.json last, which says that it is done."""
        directory, before = self.directory / name, self.record(name)
        for file, content in found.items():
            with replaced(directory / file) as unfinished:
                unfinished.write_bytes(content)
        write_json(directory / "piece.json", {"key": key, "times": before.get("times", 0) + 1} | took)
        _evaluation.cache_clear()

    def evaluation(self, name: str) -> Run:
        """An evaluation's samples, as `evaluation` measures them.

        Raises:
          DataError: they are damaged.
        """
        return _evaluation(self.directory / name)

    def training(self, name: str) -> Json:
        """{"curve": [...], "heldout": {"init" or stage: {"metrics": ..., "pairs": {id: sums}}}}.

        Raises:
          DataError: it is damaged.
        """
        return json.loads(_unpacked(self.directory / name / "training.json.gz"))

    def shares(self, name: str) -> tuple[float, float]:
        """Of an evaluation's samples, those that are secure and work, and those that work."""
        samples = self.evaluation(name).samples
        both = [works(sample) and state(sample) == "secure" for sample in samples]
        return sum(both) / len(both), sum(map(works, samples)) / len(samples)


@cache
def _evaluation(directory: Path) -> Run:
    samples = [json.loads(line) for line in _unpacked(directory / "samples.jsonl.gz").splitlines()]
    return Run(directory, read_json(directory / "run.json"), samples)


def _unpacked(file: Path) -> bytes:
    try:
        return gzip.decompress(file.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(f"{file}: can't be read ({error}); restore it, or delete its folder and run the piece again") from None


def packed(text: str) -> bytes:
    """The same bytes whenever it is done."""
    return gzip.compress(text.encode(), mtime=0)


def of_evaluation(out: Path, name: str) -> dict[str, bytes]:
    """What is kept of a directory that `lpo-eval run` wrote."""
    rows = read_journal(out / "samples.jsonl")
    for row in rows:
        row["prompt"] = ""  # the benchmark's
        for test in (row["functional"], row["security"]):
            if test:
                test |= {"seconds": 0.0, "detail": _ADDRESS.sub("0x", test["detail"])}
                test |= {"cases": [_ADDRESS.sub("0x", case) for case in test["cases"]]} if "cases" in test else {}
    info = read_json(out / "run.json") | {"name": name, "model": name}
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return {"samples.jsonl.gz": packed(lines), "run.json": _json(info)}


def of_training(run_dir: Path, stages: Sequence[str]) -> dict[str, bytes]:
    """What is kept of a directory that `lpo train` wrote."""
    lines = [line for line in read_journal(run_dir / "metrics.jsonl") if line["group"] in ("train", "heldout")]
    curve = [{key: line[key] for key in line if key in _CURVE + _HELDOUT or key.startswith("rewards/")} for line in lines]
    heldout = {}
    for name in ("init", *stages):
        found = read_json(run_dir / "eval" / f"{name}.json")
        heldout[name] = {"metrics": found["metrics"], "pairs": {pair["id"]: sums(pair["tokens"]) for pair in found["pairs"]}}
    return {"training.json.gz": packed(json.dumps({"curve": curve, "heldout": heldout}))}


def sums(tokens: Sequence[Sequence[Any]]) -> list[list[float]]:
    """Of a pair's answer tokens as a run's eval/ has them (text, side, changed, log-probability): for the chosen and for the rejected side
    [nats of all, how many, nats of the changed, how many]. A trunk's tokens belong to both."""
    found = []
    for side in (1, -1):
        mine = [token for token in tokens if token[1] in (0, side) and token[3] is not None]
        changed = [token[3] for token in mine if token[2]]
        found.append([round(sum(token[3] for token in mine), 4), len(mine), round(sum(changed), 4), len(changed)])
    return found


def accuracies(pairs: dict[str, list[list[float]]]) -> Json:
    """Shares of pairs whose secure side is likelier: over whole answers, a token or all together. Shards must be untrimmed."""
    whole = [(chosen[0] / chosen[1], rejected[0] / rejected[1]) for chosen, rejected in pairs.values()]
    total = [(chosen[0], rejected[0]) for chosen, rejected in pairs.values()]
    return {
        "answer_accuracy": sum(a > b for a, b in whole) / len(whole),
        "answer_accuracy_sum": sum(a > b for a, b in total) / len(total),
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
