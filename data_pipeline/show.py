"""`lpo-data show`: pairs of a shard set, decoded, with their changed tokens in colour."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from data_pipeline import tokenizer
from data_pipeline.shards import Manifest, Records

_COLOURS = {"chosen": "\x1b[30;42m", "rejected": "\x1b[97;41m", "heading": "\x1b[1m"}


def render_pairs(directory: str | Path, split: str, count: int, colour: bool) -> Iterator[str]:
    """The first `count` pairs of a split as text. Without colour, changed tokens stand between «angle quotes»."""
    manifest = Manifest.load(directory)
    records = Records(directory, manifest.splits[split])
    tok = tokenizer.load(Path(directory) / "tokenizer")
    rows = (_columns(records.read(row)) for row in range(len(records)))
    pairs = ((row, pair) for row in rows for pair in range(len(row["ids"])))
    for row, pair in itertools.islice(pairs, count):
        yield _render(row, pair, tok, colour)


def _columns(record: bytes) -> dict[str, np.ndarray]:
    example = tf.train.Example.FromString(record)
    columns = {name: np.array(feature.int64_list.value) for name, feature in example.features.feature.items() if name != "ids"}
    return columns | {"ids": np.array(example.features.feature["ids"].bytes_list.value[0].decode().split("\n"))}


def _render(row: dict[str, np.ndarray], pair: int, tok: tokenizer.Tokenizer, colour: bool) -> str:
    def paint(style: str, text: str) -> str:
        if not colour:
            return text if style == "heading" else f"«{text}»"
        return "\n".join(f"{_COLOURS[style]}{line}\x1b[0m" for line in text.split("\n"))

    def side(value: int, style: str) -> str:
        mine = np.flatnonzero((row["pair"] == pair) & (row["side"] == value))
        runs = itertools.groupby(mine, key=lambda n: bool(row["changed"][n]))
        texts = [(changed, tok.backend.decode(row["target"][list(run)].tolist(), skip_special_tokens=False)) for changed, run in runs]
        return "".join(paint(style, text) if changed else text for changed, text in texts)

    first = row["source"][row["pair"] == pair].min()
    roots = np.flatnonzero(row["positions"] == 0)
    start = roots[roots <= first].max()
    trunk = first + 1 if (row["side"][row["pair"] == pair] == 0).any() else first
    prompt = tok.backend.decode(row["tokens"][start:trunk].tolist(), skip_special_tokens=False)
    marked = {s: int(row["changed"][(row["pair"] == pair) & (row["side"] == s)].sum()) for s in (1, -1)}
    return "\n".join(
        [
            paint("heading", f"=== {row['ids'][pair]}: {marked[1]} changed chosen tokens, {marked[-1]} rejected ==="),
            prompt + side(0, "chosen"),
            paint("heading", "--- chosen branch (secure)"),
            side(1, "chosen"),
            paint("heading", "--- rejected branch (vulnerable)"),
            side(-1, "rejected") or "(nothing of it carries loss)",
            "",
        ]
    )
