"""A run's report.html: what it trained, how it went and what it changed in held-out pairs, on one page that needs nothing else."""

import io
import itertools
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data_pipeline.row import CHOSEN, REJECTED, TRUNK
from foundation.files import Json, read_journal, read_json, write_text
from foundation.pages import environment, visible
from lpo_jax.objectives import OBJECTIVES
from lpo_jax.objectives.heldout import ENGLISH, HIGHER_IS_BETTER

# Title, caption, label of the y axis, group of metrics.jsonl, names of metrics: the first is drawn solid, the second dashed.
PANELS = [
    ("Loss", "What each stage minimises; two stages' levels can't be compared.", "loss", "train", ["loss"]),
    ("Log-probability", "Secure (solid) and vulnerable side (dashed) as scored.", "nats", "train", ["logps/chosen", "logps/rejected"]),
    ("Reward margin", "Secure minus vulnerable reward, beta included.", "margin", "train", ["rewards/margins"]),
    ("Training accuracy", "Share of training pairs whose secure side is likelier.", "share", "train", ["rewards/accuracies"]),
    ("Divergence", "From the teacher (kd) or the base model (security), on average a token.", "nats", "train", ["kl"]),
    ("Held-out accuracy", "The same share of held-out pairs, on the changed tokens.", "share", "heldout", ["pair_accuracy"]),
    ("Held-out margin", "Secure minus vulnerable changed tokens, before and after each stage.", "nats a token", "heldout", ["margin"]),
]
INK = "#010203"  # stands for the page's text colour, light or dark, until the SVG is written
# One a stage. They have 3:1 contrast on a light and on a dark page, and the colour-blind can tell them apart.
COLOURS = ["#2f78c0", "#c2590f", "#00856b", "#a05195", "#7a8794"]
CLIP = 2.0  # nats; a token's background is strongest from here on
SIDES = {TRUNK: "Shared trunk", CHOSEN: "Secure branch", REJECTED: "Vulnerable branch"}


def write_report(run_dir: Path, config: Json, summary: dict[str, dict[str, float]]) -> Path:
    """Write `run_dir`/report.html, and return its path. Arguments: those of `contents`."""
    path = run_dir / "report.html"
    write_text(path, environment(Path(__file__).parent).get_template("training.html.j2").render(run=contents(run_dir, config, summary)))
    return path


def contents(run_dir: Path, config: Json, summary: dict[str, dict[str, float]], key: str = "panel") -> Json:
    """What parts.html.j2 shows of a run, from its metrics.jsonl and eval/*.json.

    Args:
      config: the run's settings, as in its YAML.
      summary: held-out metrics of "init" and of each stage, in their order; a row may lack any of them.
      key: prefix of the ids in the plots, so that several runs share a page.
    """
    names = list(summary)
    return {
        "name": run_dir.absolute().name,
        "sentence": _sentence(config),
        "columns": [(name, ENGLISH[name], "higher" if higher else "lower") for name, higher in HIGHER_IS_BETTER.items()],
        "rows": _rows(summary),
        "panels": _panels(read_journal(run_dir / "metrics.jsonl"), summary, key),
        "pairs": _pairs(run_dir, names),
        "before": names[-2:][0],
        "after": names[-1],
        "clip": CLIP,
        "settings": yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
    }


def _sentence(config: Json) -> str:
    """What the run did, in words."""
    start = config.get("model", {}).get("path") or "a randomly initialised model"
    parts = []
    for name, stage in config["stages"].items():
        objective = stage["objective"]
        mode = f", mode {objective['mode']}" if objective["name"] == "lpo" and "mode" in objective else ""
        own = f" on {_sets(stage['data'])}" if stage.get("data") else ""
        parts.append(f"stage “{name}” by {OBJECTIVES[objective['name']].title} ({objective['name']}{mode}){own}")
    sentence = f"This run trained {start}: {', then '.join(parts)}."
    if any(stage.get("data") for stage in config["stages"].values()):
        sentence += f" Held-out pairs are those of {config['data']['path']}."
    return sentence


def _sets(sets: list[Json]) -> str:
    """A stage's own shard sets, with their shares of its rows."""
    total = sum(one["weight"] or 0 for one in sets)
    return " and ".join(one["path"] + (f" ({one['weight'] / total:.3g} of the rows)" if one["weight"] else "") for one in sets)


def number(value: float, form: str = ".3f") -> str:
    """A number as text, with a true minus sign."""
    return format(value, form).replace("-", "\N{MINUS SIGN}")


def _rows(summary: dict[str, dict[str, float]]) -> list[Json]:
    """The headline table: each evaluation's metrics and their change against the row above."""
    rows: list[Json] = []
    above: dict[str, float] = {}
    for name, metrics in summary.items():
        cells = []
        for column, higher in HIGHER_IS_BETTER.items():
            scale, digits, unit = (100, 1, "%") if column == "pair_accuracy" else (1, 3, "")
            cell = {"value": "\N{EN DASH}", "change": "", "tone": ""}
            if column in metrics:
                cell["value"] = number(scale * metrics[column], f".{digits}f") + unit
                if column in above:
                    change = round(scale * (metrics[column] - above[column]), digits)
                    cell["change"] = number(change, f"+.{digits}f") if change else "\N{PLUS-MINUS SIGN}0"
                    cell["tone"] = ("better" if (change > 0) == higher else "worse") if change else ""
            cells.append(cell)
        rows.append({"name": name, "cells": cells})
        above = metrics
    return rows


def stage_ends(lines: list[Json]) -> dict[str, int]:
    """Each stage's last logged step, counted over the whole run, behind that of "init", which is 0. `lines`: of metrics.jsonl."""
    return {"init": 0} | {line["stage"]: line["total_step"] for line in lines if line["group"] == "train"}


def with_ends(lines: list[Json], summary: dict[str, dict[str, float]]) -> list[Json]:
    """A run's lines by step, also with the evaluations between stages, which earlier versions left in the summary alone."""
    ends, there = stage_ends(lines), {line["total_step"] for line in lines if line["group"] == "heldout"}
    points = [
        {"stage": name, "group": "heldout", "total_step": ends[name]} | summary[name]
        for name in summary
        if name in ends and ends[name] not in there
    ]
    return sorted(lines + points, key=lambda line: line["total_step"])


def _panels(lines: list[Json], summary: dict[str, dict[str, float]], key: str) -> list[dict[str, str]]:
    """The training curves that have data, as SVG."""
    ends, lines = stage_ends(lines), with_ends(lines, summary)
    colours = dict(zip(ends, itertools.chain([INK], itertools.cycle(COLOURS)), strict=False))
    panels = []
    for index, (title, caption, label, group, names) in enumerate(PANELS):
        shown = [line for line in lines if line["group"] == group and names[0] in line]
        if shown and len(ends) > 1:  # without a logged step there is no time axis
            draw = partial(_draw, shown, names, ends, colours)
            panels.append({"title": title, "caption": caption, "svg": plot(f"{key}{index}", label, draw)})
    return panels


def _draw(lines: list[Json], names: list[str], ends: dict[str, int], colours: dict[str, str], axes: Any) -> None:
    """The metrics `names` over all steps of a run, one colour a stage.

    Args:
      lines: lines of metrics.jsonl that have `names`, all training or all held-out ones, by step.
      ends: each stage's last step, counted over the whole run.
    """
    heldout = lines[0]["group"] == "heldout"
    if heldout:
        axes.plot([x["total_step"] for x in lines], [x[names[0]] for x in lines], color=INK, alpha=0.35, linewidth=0.8)
    for stage, colour in colours.items():
        draw_lines(axes, [line for line in lines if line["stage"] == stage], names, colour, heldout)
    low, high = axes.get_xlim()
    place: Json = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom"}
    for (_, start), (stage, end) in itertools.pairwise(ends.items()):
        if any(line["stage"] == stage for line in lines):
            axes.axvline(start, color=INK, alpha=0.5, linewidth=0.8, linestyle=":")
            axes.text((max(start, low) + min(end, high)) / 2, 1.01, stage, color=colours[stage], **place)
    axes.set_xlim(low, high)


def draw_lines(axes: Any, lines: list[Json], names: list[str], colour: str, dots: bool) -> None:
    """The metrics `names` of these lines in one colour: the first solid, the second dashed. `dots`: each value is marked, as a lone one always is."""
    look: Json = {"color": colour, "markersize": 4, "marker": "o" if dots or len(lines) == 1 else ""}
    for name, dashes in zip(names, ["-", "--"], strict=False):
        axes.plot([x["total_step"] for x in lines], [x.get(name, np.nan) for x in lines], dashes, **look)


def plot(key: str, label: str, draw: Callable[[Any], None]) -> str:
    """A plot over steps in our look, as SVG.

    Args:
      key: prefix of the SVG's ids, so that several share a page.
      label: of the y axis.
      draw: draws onto matplotlib's axes, with INK for what has the text's colour.
    """
    import matplotlib as mpl  # slow to import, and only a run's end needs it
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink = dict.fromkeys(["text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"], INK)
    style = {"svg.fonttype": "none", "svg.hashsalt": key, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context({**ink, **style}):
        figure = Figure(figsize=(4.2, 2.6), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot(xlabel="step", ylabel=label)
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        draw(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(["Date", "Creator", "Format", "Type"]))
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\1{key}-", svg)


def _pairs(run_dir: Path, names: list[str]) -> list[Json]:
    """The held-out pairs that every evaluation has drawn. A resumed run may draw more or fewer than it began with."""
    evals = [read_json(run_dir / "eval" / f"{name}.json")["pairs"] for name in names]
    return [_pair(drawn, names) for drawn in zip(*evals, strict=False) if drawn[0]["tokens"]]


def _pair(drawn: Sequence[Json], names: list[str]) -> Json:
    """One pair's tokens by side, and its changed tokens' mean log-probabilities (nats) at each evaluation."""
    _, side, changed, _ = (np.array(column) for column in zip(*drawn[0]["tokens"], strict=True))
    # [evaluations, tokens]; NaN: a token that carries no loss, kept for reading only
    logps = np.array([[token[3] for token in pair["tokens"]] for pair in drawn], float)
    change = logps[-1] - logps[-2:][0]
    blocks: dict[int, list[Json]] = {s: [] for s in SIDES}
    for (text, s, mask, _), delta, values in zip(drawn[0]["tokens"], change, logps.T, strict=True):
        scored = not np.isnan(delta)
        exact = ", ".join(f"{name} {number(value)}" for name, value in zip(names, values, strict=True))
        blocks[s].append(
            {
                "lines": visible(text).split("\n"),
                "classes": f"{'up' if delta > 0 else 'down'}{' changed' if mask else ''}",
                "strength": f"{min(abs(delta) / CLIP, 1):.2f}" if scored else "0.00",
                "title": f"{exact}; change {number(delta, '+.3f')} nats" if scored else "carries no loss: not scored",
            }
        )
    masks = [changed & (side == s) for s in (CHOSEN, REJECTED)]
    means = np.stack([logps[:, m].mean(axis=1) if m.any() else np.full(len(names), np.nan) for m in masks])  # [sides, evaluations]
    table = [
        (name, ["\N{EN DASH}" if np.isnan(v) else number(v) for v in (secure, vulnerable, secure - vulnerable)])
        for name, (secure, vulnerable) in zip(names, means.T, strict=True)
    ]
    return {"id": drawn[0]["id"], "blocks": [(title, blocks[s]) for s, title in SIDES.items()], "table": table}
