"""Run directories of `lpo-eval run`, as reports and comparisons read them."""

from dataclasses import dataclass
from pathlib import Path

from evaluation.alive import audit
from evaluation.measures import by_task, measures
from evaluation.tasks import json_lines
from foundation.errors import DataError, UserError
from foundation.files import Json, read_json


class ReportError(UserError):
    """A run that can't be read, or compared; the message names the file and the remedy."""


@dataclass(eq=False)
class Run:
    """One model on one benchmark."""

    path: Path
    info: Json  # run.json
    samples: list[Json]
    label: str = ""  # what the page calls its model
    colour: int = 0
    gutted: int | None = None  # samples, beside the first run: see `audit.mark_gutted`

    def __post_init__(self) -> None:
        self.tasks = by_task(self.samples)
        self.judged = bool(self.info["tools"]) or any(s["security"] is not None for s in self.samples)
        self.measures = {m.key: m for m in measures(self.samples, self.judged)}


def load(path: Path) -> Run:
    """A directory that `lpo-eval run` wrote, also with an earlier version.

    Raises:
      ReportError: it lacks a file or field, or has no sample.
    """
    file = path / "run.json"
    try:
        info = read_json(file)
        if not isinstance(info, dict):
            raise ReportError(f"{file}: no object; is {path} what `lpo-eval run` wrote?")
        file = path / "samples.jsonl"
        samples = list(json_lines(file.read_bytes()))
        if not all(isinstance(sample, dict) for sample in samples):
            raise ReportError(f"{file}: a line is no object; run `lpo-eval run` again")
        if not samples:
            raise ReportError(f"{file}: no sample yet; let `lpo-eval run` finish")
        for key in ("name", "model", "benchmark", "data_sha256"):
            info[key]
        for sample in samples:
            if "asked" not in sample:
                audit(sample)
        return Run(path, info, samples)
    except DataError as error:  # of run.json
        raise ReportError(f"{error}; is {path} what `lpo-eval run` wrote?") from None
    except OSError as error:
        raise ReportError(f"{error.filename}: {error.strerror}; is {path} what `lpo-eval run` wrote?") from None
    except ValueError as error:
        raise ReportError(f"{file}: {error}; run `lpo-eval run` again to finish it") from None
    except KeyError as error:
        raise ReportError(f"{path}: run.json or a line of samples.jsonl lacks {error}; run `lpo-eval run` again") from None


def cautions(first: Run, run: Run) -> list[str]:
    """What differs between two runs of a benchmark beside the model."""
    mine, theirs = (
        {key: each.info.get(key) for key in ("form", "samples_per_task", "tools", "noise", "limits", "versions")}
        | (each.info.get("sampling") or {})
        for each in (run, first)
    )
    differ = [key for key in mine | theirs if mine.get(key) != theirs.get(key)]
    if "template" in differ and "template_sha256" in differ:
        differ.remove("template_sha256")
    missing = len(first.tasks.keys() ^ run.tasks.keys())
    differ += [f"{missing} task{'s'[: missing != 1]} that only one of them has"] if missing else []
    names = [each.label or str(each.path) for each in (run, first)]
    return [f"{first.info['benchmark']}: {names[0]} and {names[1]} differ in {', '.join(differ)}, not only in the model."] if differ else []
