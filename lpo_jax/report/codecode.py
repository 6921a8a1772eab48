"""A page that shows, token by token, which of two models decided what `lpo generate` wrote; it needs nothing else."""

import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from foundation.files import Json, read_journal, read_json, write_text
from foundation.pages import environment, visible

SHOWN = 100
"""Samples on a page; of a larger job the first."""


def write(path: str | Path, out: str | Path, prompts: Mapping[str, str]) -> None:
    """Write the page of a co-decoding job.

    Args:
      out: the job's output, made with a trace; its settings lie beside it.
      prompts: each prompt's text, by id.
    """
    settings = read_json(Path(f"{out}.settings.json"))
    samples = [_sample(record, prompts) for record in read_journal(Path(out)) if record["id"] in prompts]
    order = {name: number for number, name in enumerate(prompts)}
    samples.sort(key=lambda sample: (order[sample["id"]], sample["sample"]))
    tokens = sum(sample["tokens"] for sample in samples)
    kept = sum(sample["kept"] for sample in samples) / max(tokens, 1)
    whole = {"name": Path(out).name, "settings": settings, "yaml": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)}
    template = environment(Path(__file__).parent).get_template("codecode.html.j2")
    write_text(Path(path), template.render(whole, samples=samples[:SHOWN], count=len(samples), tokens=tokens, kept=kept))


def _sample(record: Json, prompts: Mapping[str, str]) -> Json:
    """One completion's tokens, each with how clear the decision was: min(1, p / q) of a proposal that was kept, 1 minus that of another."""
    pieces, kept = [], 0
    for token in record["trace"]:
        p, q, accepted = token["p"], token["q"], token["accepted"]
        ratio = min(1.0, p / q) if q > 0 else 1.0
        kept += accepted
        draft, drawn = (json.dumps(token[key], ensure_ascii=False) for key in ("draft", "token"))
        what = "kept" if accepted else f"replaced by {drawn}"
        pieces.append(
            {
                "lines": visible(token["token"]).split("\n"),
                "classes": "up" if accepted else "down changed",
                "strength": f"{ratio if accepted else 1 - ratio:.2f}",
                "title": f"proposed {draft}: p {p:.3g} by the model, q {q:.3g} by the security model, {what}",
            }
        )
    shown = {"tokens": len(pieces), "kept": kept, "prompt": visible(prompts[record["id"]]), "pieces": pieces}
    return {key: record[key] for key in ("id", "sample", "finish")} | shown
