"""The figures of docs/: drawn from the shipped pairs, their recorded verdicts, the packages' own imports, and what a run said of a held-out pair.

    python -m website.figures

writes docs/figures/*.svg anew; the same tree gives the same bytes. Tokens are those of the tokenizer that `make train` trains, but in the
tutorial's figure, whose numbers

    python -m website.figures RUN PAIR

takes from a finished run's files first, into docs/figures/tutorial.json.
"""

import ast
import itertools
import json
import math
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline import pairs, template, tokenizer, trees
from data_pipeline.encode import MaskOptions, encode
from data_pipeline.row import CHOSEN, REJECTED, TRUNK, RowShape, pad
from foundation.files import read_journal, read_json, write_text
from judges.findings import same_family
from lpo_jax.batch import TreeBatch
from lpo_jax.objectives import OBJECTIVES, Objective
from website import ROOT

SEED = ROOT / "data_pipeline" / "seed"
SHOWN = "cwe502-yaml-pipeline-steps"
BACK, INK, PALE, GREY = "#fbfbf8", "#26323b", "#5c6870", "#dfe6ec"
SECURE, SECURE_PALE, VULNERABLE, VULNERABLE_PALE = "#3f9962", "#d9eedf", "#cd5d52", "#f6dcd9"
MONO = 'font-family="ui-monospace, monospace"'


def figures() -> dict[str, str]:
    """Each figure's SVG, by its file's name in docs/figures/."""
    rows = [pair for name in ("pairs", "broad") for pair in pairs.read(SEED / f"{name}.jsonl", pairs.Drops())]
    alpaca = template.alpaca()
    texts = [template.render(pair, alpaca, None) for pair in pairs.read(SEED / "pairs.jsonl", pairs.Drops())]
    tok = tokenizer.train((text.prompt.text + text.answer(code) for text in texts for code in (text.chosen, text.rejected)), 1024)
    encoded = {pair.id: encode(pair, tok, alpaca, MaskOptions()) for pair in rows}
    shown = encoded[SHOWN]
    found = {"pair": _pair(shown, tok), "tokens": _tokens(list(encoded.values())), "objectives": _objectives(shown, tok)}
    return {f"{name}.svg": svg for name, svg in (found | {"judges": _judges(), "packages": _packages(), "tutorial": _tutorial()}).items()}


def _svg(width: int, height: int, label: str, parts: Iterable[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" font-size="13" role="img"'
    return "\n".join([f'{head} aria-label="{escape(label)}">', _box(0, 0, width, height, BACK, 10), *parts, "</svg>", ""])


def _box(x: float, y: float, width: float, height: float, fill: str, radius: int = 4) -> str:
    return f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="{radius}" fill="{fill}"/>'


def _text(x: float, y: float, text: str, fill: str = INK, more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="{fill}" {more} xml:space="preserve">{escape(text)}</text>'


def _spelled(tok: tokenizer.Tokenizer, ids: Iterable[int]) -> list[str]:
    return ["<eos>" if token == tok.eos_id else _visible(tok.backend.decode([int(token)], skip_special_tokens=False)) for token in ids]


def _visible(text: str) -> str:
    return text.replace("\n", "↵").replace(" ", "·")


def _row(texts: Iterable[str], colours: Sequence[tuple[str, str]], x: float, y: float) -> tuple[list[str], float]:
    """Boxes of tokens from x on, and where they end."""
    parts = []
    for text, (fill, ink) in zip(texts, colours, strict=True):
        parts += [_box(x, y, _wide(text), 26, fill), _text(x + 4.5, y + 18, text, ink, f'{MONO} font-size="12"')]
        x += _wide(text) + 2
    return parts, x


def _wide(text: str) -> float:
    return 7.6 * len(text) + 9


def _bars(texts: Iterable[str], bars: Iterable[tuple[float, str]], x: float, y: float) -> tuple[list[str], float]:
    """Bars (height, colour) on a line at y, each as wide as its token's box above, and where they end."""
    parts, start = [], x
    for text, (tall, fill) in zip(texts, bars, strict=True):
        parts += [_box(x, y - tall, _wide(text), tall, fill, 1)] if tall >= 0.5 else []
        x += _wide(text) + 2
    return [*parts, f'<line x1="{start:.0f}" x2="{x:.0f}" y1="{y}" y2="{y}" stroke="{GREY}"/>'], x


def _pair(pair: trees.Encoded, tok: tokenizer.Tokenizer) -> str:
    """A shipped pair's tokens around its change, with masks."""
    split = int(np.flatnonzero(pair.m_plus)[0])
    stop = int(np.flatnonzero(pair.m_minus)[-1]) + 1
    trunk, behind = pair.chosen[split - 9 : split], 5
    chosen = slice(split, int(np.flatnonzero(pair.m_plus)[-1]) + 1 + behind)
    rejected = slice(split, stop + behind)
    parts, end = _row(_spelled(tok, trunk), [(GREY, INK)] * len(trunk), 56, 96)
    parts += [_text(28, 114, "…", PALE), _text(28, 84, f"trunk: {split} tokens, computed once", PALE)]
    rows = (
        (32, chosen, pair.chosen, pair.m_plus, SECURE, SECURE_PALE, f"chosen branch: all {len(pair.chosen) - split} tokens; m+ dark"),
        (160, rejected, pair.rejected, pair.m_minus, VULNERABLE, VULNERABLE_PALE, f"rejected branch: {stop - split} of {len(pair.rejected) - split} tokens; m- dark; the rest carries no loss and isn't computed"),
    )  # fmt: skip
    widest = 0.0
    for y, part, ids, mask, dark, pale, label in rows:
        cut = stop if ids is pair.rejected else len(ids)
        colours = [((dark, "#fff") if mask[at] else (pale, INK)) if at < cut else (BACK, "#a9b0b5") for at in range(part.start, part.stop)]
        boxes, last = _row(_spelled(tok, ids[part]), colours, end + 44, y)
        widest = max(widest, last)
        parts += [*boxes, _text(end + 44, y - 8 if y < 90 else y + 44, label, PALE), _text(last + 6, y + 18, "…", PALE)]
        parts.append(
            f'<path d="M{end:.0f} 109 C{end + 24:.0f} 109 {end + 16:.0f} {y + 13} {end + 40:.0f} {y + 13}" fill="none" stroke="#9aa3ab" stroke-width="2"/>'
        )
    return _svg(int(widest) + 36, 222, f"The tokens of the shipped pair {SHOWN} as a tree", parts)


def _tokens(encoded: Sequence[trees.Encoded]) -> str:
    """How many tokens the shipped pairs have, as two sequences and as trees."""
    parts, counts = [], Counter[str]()
    for pair in encoded:
        tree = trees.plant(pair)
        shorter = min(len(pair.chosen), len(pair.rejected))
        trunk = int(np.argmax((pair.chosen[:shorter] != pair.rejected[:shorter]) | pair.m_plus[:shorter] | pair.m_minus[:shorter]))
        counts["trunk"] += trunk
        counts["chosen"] += _chosen_end(tree) - trunk
        counts["rejected"] += len(tree.tokens) - _chosen_end(tree)
        counts["two"] += len(pair.chosen) + len(pair.rejected) - 2
        counts["changed"] += int(pair.m_plus.sum() + pair.m_minus.sum())
        counts["code"] += len(pair.chosen) - pair.chosen_code_start + len(pair.rejected) - pair.rejected_code_start
    ours = counts["trunk"] + counts["chosen"] + counts["rejected"]
    scale = 640 / counts["two"]
    second = counts["two"] - ours - counts["trunk"]
    bars = (
        ("two sequences", counts["two"], (("trunk", counts["trunk"], GREY), ("trunk again", counts["trunk"], GREY), ("chosen", counts["chosen"], SECURE_PALE), ("rejected", counts["rejected"] + second, VULNERABLE_PALE))),
        ("trees", ours, (("trunk", counts["trunk"], GREY), ("chosen", counts["chosen"], SECURE_PALE), ("", counts["rejected"], VULNERABLE))),
    )  # fmt: skip
    for number, (name, total, pieces) in enumerate(bars):
        x, y = 136.0, 30 + 66 * number
        parts.append(_text(20, y + 25, name))
        for label, size, fill in pieces:
            parts += [
                _box(x, y, size * scale - 1, 40, fill, 3),
                _text(x + 6, y + 25, label if size * scale > 60 else "", INK, 'font-size="12"'),
            ]
            x += size * scale
        parts.append(_text(x + 8, y + 25, f"{total:,}"))
    told = f"{len(encoded)} shipped pairs: two sequences hold {counts['two'] / ours:.2f} times the tokens of their trees; {counts['changed'] / counts['code']:.0%} of the code's tokens differ"
    return _svg(860, 186, told, [*parts, _text(136, 172, told, PALE, 'font-size="12"')])


def _chosen_end(tree: trees.Tree) -> int:
    """Where the rejected branch's inputs begin."""
    jumps = np.flatnonzero(np.diff(tree.positions) != 1)
    return int(jumps[-1]) + 1 if len(jumps) else len(tree.tokens)


OPTIONS: dict[str, dict[str, Any]] = {
    "sft": {}, "lpo": {"beta": 1.0, "gamma": 0.0, "alpha": 0.05}, "simpo": {"beta": 1.0, "gamma": 0.0}, "cpo": {"beta": 0.02}, "safecoder": {},
}  # fmt: skip
"""Objectives that stand alone, with options at which their pulls can be told apart."""


def _objectives(pair: trees.Encoded, tok: tokenizer.Tokenizer) -> str:
    """How each objective pulls at the tokens of one pair: the loss's gradient by their log-probabilities, all of which are -1."""
    tree = trees.plant(pair, trim=False)
    row = trees.join([tree])
    batch = TreeBatch.of(pad([row], RowShape(len(tree.tokens), len(tree.source), 1)))
    batch = jax.tree.map(jnp.asarray, batch)
    split = int(np.flatnonzero(tree.side != TRUNK)[0])
    at = [*range(split - 4, split + int(pair.m_plus.sum()) + 4)]
    first = int(np.flatnonzero(tree.side == REJECTED)[0])
    at += range(first, first + int(np.flatnonzero(tree.changed[first:])[-1]) + 5)
    texts, width, y = _spelled(tok, tree.target[at]), 0.0, 58
    parts = [_text(112, 24, "trunk and chosen branch", PALE), *_row(texts, _kinds(tree.side[at], tree.changed[at]), 112, 32)[0]]
    for name, options in OPTIONS.items():
        pull = _pull(OBJECTIVES[name], options, batch)
        most = float(jnp.abs(pull).max())
        y += 30
        bars, end = _bars(texts, [(22 * abs(float(pull[n])) / most, SECURE if pull[n] > 0 else VULNERABLE) for n in at], 112, y + 4)
        parts += [_text(20, y, name), *bars]
        width = max(width, end)
    parts.append(
        _text(
            112,
            y + 28,
            "height: how hard the loss pulls at a token's log-probability; green up, red down; each row to its own scale",
            PALE,
            'font-size="12"',
        )
    )
    return _svg(int(width) + 24, y + 46, "How objectives pull at the tokens of one pair", parts)


def _pull(record: Objective, options: dict[str, Any], batch: TreeBatch) -> jax.Array:
    """Minus the loss's gradient by each log-probability, [N]; all of them are -1."""

    def loss(logps: jax.Array) -> jax.Array:
        total, weight = record.terms(logps, batch, record.options(**options))["loss"]
        return total / weight

    return -jax.grad(loss)(jnp.full(batch.source.shape, -1.0))[0]


def _kinds(sides: Iterable[int], changed: Iterable[bool]) -> list[tuple[str, str]]:
    dark, pale = {1: SECURE, -1: VULNERABLE}, {0: GREY, 1: SECURE_PALE, -1: VULNERABLE_PALE}
    return [(dark[int(side)], "#fff") if new else (pale[int(side)], INK) for side, new in zip(sides, changed, strict=True)]


def _tutorial() -> str:
    """How likely a model holds the changed tokens of a held-out pair, before it is trained and after each stage."""
    found = read_json(ROOT / "docs" / "figures" / "tutorial.json")
    tokens = [(_visible(text), side, new) for text, side, new in found["tokens"]]
    parts, width, y = [], 0.0, 24
    for side, label, dark in ((CHOSEN, "chosen branch", SECURE), (REJECTED, "rejected branch", VULNERABLE)):
        own = [n for n, token in enumerate(tokens) if token[1] == side]
        changed = [n for n in own if tokens[n][2]]
        at = [n for n in own if changed[0] - 2 <= n <= changed[-1] + 2]
        texts = [tokens[n][0] for n in at]
        parts += [_text(112, y, label, PALE), *_row(texts, _kinds([side] * len(at), [tokens[n][2] for n in at]), 112, y + 8)[0]]
        y += 40
        for name, logps in found["logps"].items():
            y += 32
            bars, end = _bars(texts, [(26 * math.exp(logps[n]) if n in changed else 0, dark) for n in at], 112, y)
            parts += [_text(20, y - 4, name), *bars]
            width = max(width, end)
        y += 36
    told = "height: a changed token's probability"
    return _svg(max(int(width) + 24, 420), y + 8, f"The held-out pair {found['pair']} before and after training", [*parts, _text(112, y - 8, told, PALE, 'font-size="12"')])  # fmt: skip


def take(run: str, pair: str) -> None:
    """Keep what a finished run's evaluations say of one of the held-out pairs that its report draws."""
    stages = ("init", "sft", "lpo")
    drawn = {name: next(each for each in read_json(Path(run) / "eval" / f"{name}.json")["pairs"] if each["id"] == pair) for name in stages}
    logps = {name: [None if token[3] is None else round(token[3], 4) for token in each["tokens"]] for name, each in drawn.items()}
    kept = {"pair": pair, "tokens": [token[:3] for token in drawn["init"]["tokens"]], "logps": logps}
    write_text(ROOT / "docs" / "figures" / "tutorial.json", json.dumps(kept, ensure_ascii=False) + "\n")


def _judges() -> str:
    """On how many sides of the shipped pairs analyzers find a weakness of the pair's own kind, and any."""
    rows = read_journal(SEED / "verdicts.jsonl")
    parts, y = [], 36
    wanted = {"Bandit": ("bandit",), "our Semgrep rules": ("semgrep",), "both together": ("bandit", "semgrep")}
    for name, tools in wanted.items():
        parts.append(_text(20, y + 21, name))
        for side, label, fill in (("rejected", "vulnerable", VULNERABLE), ("chosen", "secure", SECURE)):
            found = sum(any(same_family(cwe, row["cwe"]) for cwe, rule, _ in row[side] if rule.startswith(tools)) for row in rows)
            wide = 440 * found / len(rows)
            parts += [
                _box(170, y, max(wide, 2), 16, fill, 2),
                _text(178 + wide, y + 13, f"{found / len(rows):.0%} of {label} sides", PALE, 'font-size="12"'),
            ]
            y += 19
        y += 12
    told = f"{len(rows)} shipped pairs: sides with a finding of the pair's own kind of weakness. What isn't found isn't proven secure"
    return _svg(860, y + 22, told, [*parts, _text(20, y + 6, told, PALE, 'font-size="12"')])


def _packages() -> str:
    """Which package imports which, and in how many modules, from the sources themselves."""
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    about = {
        "reproduce": "the papers' claims, re-run in pieces",
        "evaluation": "benchmarks, runs, measures, the report", "lpo_jax": "the learner: objectives, model, training, decoding, serving",
        "data_pipeline": "pairs, masks, trees, shards, the feed, distillation", "judges": "analyzers, and the sandbox", "foundation": "files, journals, errors, pages",
    }  # fmt: skip
    uses = Counter((package, other) for package in layers for file in (ROOT / package).rglob("*.py") if "seed" not in file.parts for other in _imported(file.read_text(encoding="utf-8")) if other != package and other in layers)  # fmt: skip
    place = {name: 24 + 76 * number for number, name in enumerate(layers)}
    parts = []
    for name, y in place.items():
        parts += [
            _box(24, y, 430, 46, GREY, 8),
            _text(40, y + 20, f"{name}/", INK, 'font-weight="600"'),
            _text(40, y + 37, about[name], PALE, 'font-size="12"'),
        ]
    for upper, lower in itertools.combinations(layers, 2):
        count, above, below = uses[upper, lower], place[upper], place[lower]
        if count and below - above == 76:
            parts += [
                _arrow(f"M239 {above + 46} L239 {below - 6}", 239, below),
                _text(249, above + 66, f"{count} modules", PALE, 'font-size="11"'),
            ]
        elif count:
            steps = (below - above) // 76
            bend, start, end = 470 + 62 * (steps - 1), above + 12 + 8 * steps, below + 44 - 8 * steps
            parts += [
                _arrow(f"M454 {start} C{bend} {start} {bend} {end} 462 {end}", 456, end, left=True),
                _text(bend * 0.75 + 120, (start + end) / 2 + 4, str(count), PALE, 'font-size="11"'),
            ]
    return _svg(720, place[layers[-1]] + 66, "The packages: arrows point at what is imported, and run one way", parts)


def _arrow(path: str, x: float, y: float, left: bool = False) -> str:
    tip = f"M{x} {y} l9 -4 v8 z" if left else f"M{x} {y} l-5 -9 h10 z"
    return f'<path d="{path}" fill="none" stroke="#9aa3ab" stroke-width="2"/><path d="{tip}" fill="#9aa3ab"/>'


def _imported(source: str) -> set[str]:
    """The top packages that a module imports, types and lazy ones too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def main() -> int:
    if len(sys.argv) == 3:
        take(*sys.argv[1:])
    for name, svg in figures().items():
        write_text(ROOT / "docs" / "figures" / name, svg)
        print(f"docs/figures/{name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
