"""Pairs made of numbers alone: what an objective sees of a batch, and the same as lists for formulas of one pair at a time."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lpo_jax import objectives
from tests.helpers.oracle import flat


@dataclass(frozen=True)
class Side:
    logps: np.ndarray  # [n]
    reference: np.ndarray  # [n]: the reference model's
    changed: np.ndarray  # [n] bool

    @property
    def ratios(self):
        return self.logps - self.reference

    def and_then(self, logps, reference):
        """The side with unchanged tokens behind it."""
        more = np.zeros(len(logps), bool)
        return Side(np.append(self.logps, logps), np.append(self.reference, reference), np.append(self.changed, more))


@dataclass(frozen=True)
class Pair:
    chosen: Side
    rejected: Side

    @property
    def swapped(self):
        return Pair(self.rejected, self.chosen)


def draw(seed, trunk=0):
    """Four pairs whose sides share `trunk` tokens; of the second the rejected side changes nothing, of the third neither."""
    rng, pairs = np.random.default_rng(seed), []
    for index in range(4):
        shared = [-rng.exponential(0.7, trunk) for _ in range(2)]
        sides = []
        for name in ("chosen", "rejected"):
            n = int(rng.integers(2, 7))
            own = [-rng.exponential(0.7, n) for _ in range(2)]
            changes = index < 1 or index == 3 or (index == 1 and name == "chosen")
            changed = np.append(np.zeros(trunk, bool), (np.arange(n) == 0) | (rng.random(n) < 0.5) if changes else np.zeros(n, bool))
            sides.append(Side(*(np.append(s, o) for s, o in zip(shared, own, strict=True)), changed))
        pairs.append(Pair(*sides))
    return pairs


WIDTH = 112
"""N of every batch: one shape, so that nothing is compiled twice."""


def batch_of(pairs, trunk=0):
    """(batch, log-probabilities [1, N], the reference's [1, N]), of the default dtype; with padding for tokens and for pairs."""
    found = []
    for field in ("logps", "reference"):
        rows = []
        for pair in pairs:
            sides = [
                (getattr(side, field), "".join("01"[int(x)] for x in side.changed), [7] * len(side.changed))
                for side in (pair.chosen, pair.rejected)
            ]
            (c, mc, ids_c), (r, mr, ids_r) = sides
            rows.append((c, mc, r, mr, ids_c, ids_r))
        found.append(flat(rows, trunk))
    (batch, logps), (_, reference) = found
    more = ((0, 0), (0, WIDTH - logps.shape[1]))
    tokens = {name: np.pad(getattr(batch, name), more) for name in ("source", "target", "side", "answer", "changed")}
    lengths = {
        name: np.pad(getattr(batch, name), ((0, 0), (0, 5 - len(pairs)))) for name in ("chosen_len", "rejected_len", "reasoning_len")
    }
    batch = batch.replace(**tokens, **lengths, pair=np.pad(batch.pair, more, constant_values=-1))
    return batch, jnp.pad(logps, more), jnp.pad(reference, more)


def terms_of(options, logps, batch, reference):
    """An objective's terms, whether or not it has a reference."""
    record = objectives.of(options)
    return record.terms(logps, batch, options, *([reference] if record.frozen else []))


def evaluate(options, pairs, trunk=0):
    """An objective's terms as means, in float64."""
    with jax.enable_x64(True):
        batch, logps, reference = batch_of(pairs, trunk)
        assert logps.dtype == jnp.float64
        return objectives.means(terms_of(options, logps, batch, reference))
