"""`lpo-data show`: pairs of a shard set, decoded, with their changed tokens in colour."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from data_pipeline import tokenizer
from data_pipeline.shards import Manifest, Records
from lpo_jax.batch import CHOSEN, REJECTED, TRUNK, TreeBatch, answer_tokens

_COLOURS = {CHOSEN: "\x1b[30;42m", REJECTED: "\x1b[97;41m"}


def render_pairs(directory: str | Path, split: str, count: int, colour: bool) -> Iterator[str]:
    """The first `count` pairs of a split as text. Without colour, changed tokens stand between «angle quotes»."""
    manifest = Manifest.load(directory)
    records = Records(directory, manifest.splits[split])
    tok = tokenizer.load(Path(directory) / "tokenizer")
    rows = (_read(records.read(row)) for row in range(len(records)))
    pairs = ((ids[pair], row, pair) for row, ids in rows for pair in range(len(ids)))
    for pair_id, row, pair in itertools.islice(pairs, count):
        yield _render(pair_id, row, pair, tok, colour)


def _read(record: bytes) -> tuple[TreeBatch, list[str]]:
    """A serialised row as a batch of one, and its pairs' ids."""
    features = tf.train.Example.FromString(record).features.feature
    columns: dict[str, Any] = {name: np.array(feature.int64_list.value)[None] for name, feature in features.items() if name != "ids"}
    return TreeBatch(**columns), features["ids"].bytes_list.value[0].decode().split("\n")


def _render(pair_id: str, row: TreeBatch, pair: int, tok: tokenizer.Tokenizer, colour: bool) -> str:
    def decode(ids: list[int]) -> str:
        return tok.backend.decode(ids, skip_special_tokens=False)

    def side(value: int) -> str:
        mine = [(token, n is not None and bool(row.changed[0, n])) for token, s, n in answer if s == value]
        runs = ((changed, decode([token for token, _ in run])) for changed, run in itertools.groupby(mine, key=lambda x: x[1]))
        return "".join(_paint(_COLOURS[value], text) if changed and colour else f"«{text}»" if changed else text for changed, text in runs)

    def heading(text: str) -> str:
        return _paint("\x1b[1m", text) if colour else text

    answer = answer_tokens(row, 0, pair)
    first = answer[0][2]
    assert first is not None  # an answer begins with a scored token
    stop = int(row.source[0, first]) + 1
    start = np.flatnonzero(np.asarray(row.positions[0, :stop]) == 0)[-1]
    marked = {s: sum(n is not None and bool(row.changed[0, n]) for _, of, n in answer if of == s) for s in (CHOSEN, REJECTED)}
    return "\n".join(
        [
            heading(f"=== {pair_id}: {marked[CHOSEN]} changed chosen tokens, {marked[REJECTED]} rejected ==="),
            decode(np.asarray(row.tokens[0, start:stop]).tolist()) + side(TRUNK),
            heading("--- chosen branch (secure)"),
            side(CHOSEN),
            heading("--- rejected branch (vulnerable)"),
            side(REJECTED) or "(nothing of it carries loss)",
            "",
        ]
    )


def _paint(style: str, text: str) -> str:
    return "\n".join(f"{style}{line}\x1b[0m" for line in text.split("\n"))
