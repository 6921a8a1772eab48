"""Several training runs on one page: what they differ in, their held-out numbers and their curves, one colour a run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from foundation.files import Json, flat, read_journal, write_text
from foundation.pages import environment
from lpo_jax.objectives.heldout import ENGLISH, HIGHER_IS_BETTER
from lpo_jax.report.training import COLOURS, PANELS, draw_lines, number, plot, with_ends

_PLACES = ("run_dir",)
"""Settings that tell runs apart by their nature."""


@dataclass(frozen=True)
class TrainedRun:
    """A run directory and what it says of itself."""

    directory: Path
    config: Json  # as in its config.json, defaults included
    summary: Mapping[str, Mapping[str, float]]  # held-out metrics of "init" and after each stage, as far as it has come


def write(path: Path, runs: Sequence[TrainedRun]) -> None:
    """Write the page. It needs nothing else."""
    names = _names(runs)
    shown: list[Json] = [{"name": name, "colour": COLOURS[i % len(COLOURS)], "dashed": i >= len(COLOURS)} for i, name in enumerate(names)]
    page: Json = {
        "runs": shown,
        "columns": [(name, "higher" if higher else "lower") for name, higher in HIGHER_IS_BETTER.items()],
        "english": ENGLISH,
        "differences": differences([run.config for run in runs]),
        "rows": [row for run, look in zip(runs, shown, strict=True) for row in _rows(run, look)],
        "panels": _panels(runs, [look["colour"] for look in shown]),
    }
    _mark_best(page["rows"])
    write_text(path, environment(Path(__file__).parent).get_template("runs.html.j2").render(page))


def _names(runs: Sequence[TrainedRun]) -> list[str]:
    """The directories' names, or, where two are the same, their paths."""
    names = [run.directory.absolute().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.directory) for run in runs]


def differences(configs: Sequence[Json]) -> list[tuple[str, list[str]]]:
    """(key, each config's value) of what isn't the same in all; an en dash where one has no such key."""
    settings = [flat(json.loads(json.dumps(config))) for config in configs]
    keys = dict.fromkeys(key for found in settings for key in found if key.split(".")[0] not in _PLACES)
    rows = [(key, [found.get(key, "\N{EN DASH}") for found in settings]) for key in keys]
    return [(key, [_plain(value) for value in values]) for key, values in rows if len(set(values)) > 1]


def _plain(value: str) -> str:
    """JSON as it stands in YAML: texts without quotes."""
    return json.loads(value) if value.startswith('"') else value


def _rows(run: TrainedRun, look: Json) -> list[Json]:
    last = list(run.summary)[-1:]
    return [
        look
        | {"after": after, "last": [after] == last, "cells": [{"value": metrics.get(name), "best": False} for name in HIGHER_IS_BETTER]}
        for after, metrics in run.summary.items()
    ] or [look | {"after": "\N{EN DASH}", "last": True, "cells": [{"value": None, "best": False} for _ in HIGHER_IS_BETTER]}]


def _mark_best(rows: list[Json]) -> None:
    """Mark each column's best among what the runs have come to, and write all values as text."""
    for column, (name, higher) in enumerate(HIGHER_IS_BETTER.items()):
        ends = [cell for row in rows if row["last"] and (cell := row["cells"][column])["value"] is not None]
        if len(ends) > 1:
            best = (max if higher else min)(cell["value"] for cell in ends)
            for cell in ends:
                cell["best"] = cell["value"] == best
        for row in rows:
            value: Any = row["cells"][column]["value"]
            share = name == "pair_accuracy"
            text = "\N{EN DASH}" if value is None else number(100 * value, ".1f") + "%" if share else number(value)
            row["cells"][column]["value"] = text


def _panels(runs: Sequence[TrainedRun], colours: Sequence[str]) -> list[dict[str, str]]:
    """The curves that a run has, each over its own steps."""
    lines = [with_ends(read_journal(run.directory / "metrics.jsonl"), {k: dict(v) for k, v in run.summary.items()}) for run in runs]
    panels = []
    for index, (title, caption, label, group, names) in enumerate(PANELS):
        drawn = [[line for line in own if line["group"] == group and names[0] in line] for own in lines]
        if any(drawn):
            svg = plot(f"runs{index}", label, partial(_draw, drawn, names, colours, group == "heldout"))
            panels.append({"title": title, "caption": caption, "svg": svg})
    return panels


def _draw(runs: Sequence[list[Json]], names: list[str], colours: Sequence[str], dots: bool, axes: Any) -> None:
    for number_of_run, (lines, colour) in enumerate(zip(runs, colours, strict=True)):
        before = len(axes.get_lines())
        draw_lines(axes, lines, names, colour, dots)
        if number_of_run >= len(COLOURS):  # their colour is another's too
            for line in axes.get_lines()[before:]:
                line.set_linestyle(":")
