"""Which rows a step reads: pure functions of (seed, step), so that a run resumes at any step at once."""

from collections.abc import Sequence

import numpy as np

CYCLE = 1000
"""Places of a mixture in which each set has its exact share."""


def stream_rows(seed: tuple[int, ...], n_rows: int, batch_rows: int, step: int) -> np.ndarray:
    """Row indices of a step's global batch, [batch_rows]: all rows in a new order each epoch."""
    return _endless(seed, n_rows, np.arange(step * batch_rows, (step + 1) * batch_rows))


def mixed_rows(seed: tuple[int, ...], sizes: Sequence[int], weights: Sequence[float], batch_rows: int, step: int) -> np.ndarray:
    """Row indices of a step's global batch of a mixture, [batch_rows]. The sets' rows are numbered through.

    Each cycle of `CYCLE` places is shared out by `shares`, in an order of its own. A set's places take its rows one after another, in
    a new order each epoch of that set.
    """
    at = np.arange(step * batch_rows, (step + 1) * batch_rows)
    parts = shares(weights)
    owner, nth = np.empty((2, len(at)), int)  # the set of each place, and how many places before it are that set's
    for cycle in np.unique(at // CYCLE):
        sets = np.random.default_rng((*seed, 0, int(cycle))).permutation(np.repeat(np.arange(len(parts)), parts))
        rank = np.empty(CYCLE, int)
        for index, part in enumerate(parts):
            rank[sets == index] = cycle * part + np.arange(part)
        here = at // CYCLE == cycle
        owner[here], nth[here] = sets[at[here] % CYCLE], rank[at[here] % CYCLE]
    rows, first = np.empty(len(at), int), 0
    for index, size in enumerate(sizes):
        mine = owner == index
        rows[mine] = first + _endless((*seed, index + 1), size, nth[mine])
        first += size
    return rows


def shares(weights: Sequence[float]) -> list[int]:
    """How many places of a cycle each set has, by largest remainder: they add up to `CYCLE`, each less than one from its exact share."""
    exact = np.array(weights, float) / max(weights)
    exact *= CYCLE / exact.sum()
    parts = np.floor(exact).astype(int)
    parts[np.argsort(parts - exact, kind="stable")[: CYCLE - parts.sum()]] += 1
    return parts.tolist()


def _endless(seed: tuple[int, ...], n_rows: int, at: np.ndarray) -> np.ndarray:
    """The rows at these places of an endless stream: all of them in a new order each epoch."""
    order = {epoch: np.random.default_rng((*seed, int(epoch))).permutation(n_rows) for epoch in np.unique(at // n_rows)}
    return np.array([order[i // n_rows][i % n_rows] for i in at], int)
