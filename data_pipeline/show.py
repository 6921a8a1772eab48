"""`lpo-data show`: pairs of a shard set, decoded, with their changed tokens in colour."""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipeline import tokenizer
from data_pipeline.row import CHOSEN, REJECTED, TRUNK, PackedRows, answer_tokens
from data_pipeline.shards import Manifest, Records, parse
from foundation.errors import DataError
from foundation.pages import visible

_COLOURS = {CHOSEN: "\x1b[30;42m", REJECTED: "\x1b[97;41m"}


def render_pairs(directory: str | Path, split: str, count: int, colour: bool) -> Iterator[str]:
    """The first `count` pairs of a split as text. Without colour, changed tokens stand between «angle quotes»."""
    manifest = Manifest.load(directory)
    records = Records((directory, manifest.splits[split]))
    tok = tokenizer.load(Path(directory) / "tokenizer")
    if tok.sha256 != manifest.tokenizer_sha256:
        raise DataError(f"{directory}/manifest.json: the tokenizer beside it is another; build the set with `lpo-data build` again")
    print(f"reading {directory}", file=sys.stderr)  # TensorFlow is loaded for it, which takes seconds
    rows = (parse(records.read(row)) for row in range(len(records)))
    pairs = ((ids[pair], row, pair) for row, ids in rows for pair in range(len(ids)))
    for pair_id, row, pair in itertools.islice(pairs, count):
        yield _render(pair_id, row, pair, tok, colour)


def _render(pair_id: str, row: PackedRows, pair: int, tok: tokenizer.Tokenizer, colour: bool) -> str:
    def decode(ids: list[int]) -> str:
        return visible(tok.backend.decode(ids, skip_special_tokens=False))

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
            heading(f"=== {visible(pair_id)}: {marked[CHOSEN]} changed chosen tokens, {marked[REJECTED]} rejected ==="),
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
