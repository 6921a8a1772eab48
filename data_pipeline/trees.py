"""From a tokenised pair to a tree, and from trees to packed rows (see `data_pipeline.row` for what a row holds)."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.row import CHOSEN, COLUMNS, REJECTED, TRUNK


@dataclass(frozen=True)
class Encoded:
    """Token ids of the two full sequences of a pair, prompt and EOS included, with the masks of what differs."""

    id: str
    chosen: np.ndarray  # [c] int32
    rejected: np.ndarray  # [r] int32
    m_plus: np.ndarray  # [c] bool
    m_minus: np.ndarray  # [r] bool
    answer_start: int  # index of the first answer token on both sides
    chosen_code_start: int  # index of the first code token
    rejected_code_start: int


@dataclass(frozen=True)
class Tree:
    """One pair as a tree in depth-first order: `n` input tokens, `s` scored ones. Indices count from the tree's first token."""

    id: str
    tokens: np.ndarray  # [n] int32
    positions: np.ndarray  # [n] int32
    subtree_end: np.ndarray  # [n] int32
    source: np.ndarray  # [s] int32
    target: np.ndarray  # [s] int32
    side: np.ndarray  # [s] int8
    answer: np.ndarray  # [s] bool
    changed: np.ndarray  # [s] bool
    chosen_len: int
    rejected_len: int
    reasoning_len: int


def plant(pair: Encoded, trim: bool = True, score_prompt: bool = False) -> Tree:
    """The tree of a pair.

    The trunk ends in front of the first token that differs or is marked; of two equal sides it is all there is. The last token of a path
    is scored but is no input.

    Args:
      trim: keep of the rejected branch only what its changed tokens need: they alone are scored, and what follows the last of
        them is cut. Exact for every objective that puts loss on changed rejected tokens only.
      score_prompt: score the prompt's tokens as well (`answer` tells them apart).
    """
    chosen, rejected = pair.chosen, pair.rejected
    shorter = min(len(chosen), len(rejected))
    splits = (chosen[:shorter] != rejected[:shorter]) | pair.m_plus[:shorter] | pair.m_minus[:shorter]
    trunk = int(np.argmax(splits)) if splits.any() else shorter
    if trunk == 0:
        raise ValueError(f"pair {pair.id}: the two sides share no first token, so nothing predicts it; give them a prompt or a BOS")
    stop = len(rejected)
    if trim:
        stop = int(np.flatnonzero(pair.m_minus)[-1]) + 1 if pair.m_minus.any() else trunk
    sides = (
        (TRUNK, chosen, pair.m_plus, 1, trunk),
        (CHOSEN, chosen, pair.m_plus, trunk, len(chosen)),
        (REJECTED, rejected, pair.m_minus, trunk, stop),
    )
    n_chosen, n_rejected = max(len(chosen) - 1 - trunk, 0), max(stop - 1 - trunk, 0)
    n_trunk = trunk - (len(chosen) == len(rejected) == trunk)
    first_row = {CHOSEN: trunk, REJECTED: trunk + n_chosen}  # row index of a branch's first input
    size = n_trunk + n_chosen + n_rejected

    columns: list[tuple[np.ndarray, ...]] = []
    for side, ids, mask, low, high in sides:
        at = np.arange(low, high)
        if side == TRUNK and not score_prompt:
            at = at[at >= pair.answer_start]
        if side == REJECTED and trim:
            at = at[mask[low:high]]
        source = at - 1
        if side != TRUNK:
            source = np.where(at == trunk, trunk - 1, at - 1 - trunk + first_row[side])
        columns.append((source, ids[at], np.full(len(at), side), at >= min(pair.answer_start, trunk), mask[at]))
    source, target, side_of, answer, changed = (np.concatenate(parts) for parts in zip(*columns, strict=True))

    inside = [np.arange(n_trunk), trunk + np.arange(n_chosen), trunk + np.arange(n_rejected)]
    return Tree(
        id=pair.id,
        tokens=np.concatenate([chosen[inside[0]], chosen[inside[1]], rejected[inside[2]]]).astype(np.int32),
        positions=np.concatenate(inside).astype(np.int32),
        subtree_end=np.repeat([size, trunk + n_chosen, size], [n_trunk, n_chosen, n_rejected]).astype(np.int32),
        source=source.astype(np.int32),
        target=target.astype(np.int32),
        side=side_of.astype(np.int8),
        answer=answer,
        changed=changed,
        chosen_len=max(len(chosen) - pair.chosen_code_start, 0),
        rejected_len=max(len(rejected) - pair.rejected_code_start, 0),
        reasoning_len=max(pair.chosen_code_start - pair.answer_start, 0),
    )


def pack(sizes: Sequence[int], capacity: int, window: int = 256) -> list[list[int]]:
    """Best-fit decreasing within windows: index lists whose sizes add up to at most `capacity`.

    Windows keep rows alike (big and small trees in each) and the order of the input; 256 trees fill about 97 % of a row.
    """
    rows: list[list[int]] = []
    for start in range(0, len(sizes), window):
        indices = sorted(range(start, min(start + window, len(sizes))), key=lambda i: (-sizes[i], i))
        open_rows: list[tuple[int, int]] = []  # (room left, row), sorted
        for i in indices:
            if sizes[i] > capacity:
                raise ValueError(f"item {i} of size {sizes[i]} exceeds the row capacity {capacity}")
            place = bisect.bisect_left(open_rows, (sizes[i], -1))
            if place < len(open_rows):
                room, row = open_rows.pop(place)
                rows[row].append(i)
            else:
                room, row = capacity, len(rows)
                rows.append([i])
            bisect.insort(open_rows, (room - sizes[i], row))
    return rows


def join(trees: Sequence[Tree]) -> dict[str, np.ndarray]:
    """One packed row: the trees' columns one after another, indices shifted to the row."""
    starts = np.cumsum([0] + [len(tree.tokens) for tree in trees])[:-1]
    row = {"pair": np.repeat(np.arange(len(trees)), [len(tree.source) for tree in trees])}
    for column in COLUMNS:
        values = [getattr(tree, column.name) for tree in trees] if column.name != "pair" else []
        if column.name in ("subtree_end", "source"):
            values = [indices + start for indices, start in zip(values, starts, strict=True)]
        if values:
            row[column.name] = np.array(values) if column.axis == "pairs" else np.concatenate(values)
    return row
