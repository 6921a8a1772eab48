"""SafeCoder's security loss (He et al. 2024, arXiv 2402.09497, Eqs. 3 and 4): likelihood and unlikelihood of changed tokens.

    loss of a pair  =  - sum of log p          over the chosen side's changed tokens
                       - sum of log(1 - p)     over the rejected side's changed tokens

The paper's other half, instruction tuning in the same run, is `sft`'s on other data.

Dims: B rows, N scored tokens.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from lpo_jax.batch import TreeBatch
from lpo_jax.objectives.base import Objective, Options, Terms, log1mexp, pair_mean
from lpo_jax.objectives.preference import answer_sides, changed_tokens


@dataclass(frozen=True, kw_only=True)
class SafeCoder(Options):
    """Options of `safecoder`."""

    name: Literal["safecoder"] = "safecoder"
    reduction: Literal["sum", "mean"] = "sum"
    """over a side's changed tokens; sum: the paper's equations; mean: what its authors' code computes"""


def terms(logps: jax.Array, batch: TreeBatch, options: SafeCoder) -> Terms:
    """The two sums are logged as ``likelihood`` and ``unlikelihood``."""
    masks = (side & batch.changed for side in answer_sides(batch))
    plus, minus = (pair_mean(mask, batch) if options.reduction == "mean" else jnp.where(mask, 1.0, 0.0) for mask in masks)
    likely, unlikely = -(plus * logps).sum(), -(minus * log1mexp(logps)).sum()
    pairs = (batch.chosen_len > 0).sum().astype(logps.dtype)
    return {"loss": (likely + unlikely, pairs), "likelihood": (likely, pairs), "unlikelihood": (unlikely, pairs)}


OBJECTIVE = Objective(
    "safecoder", "likelihood and unlikelihood of changed tokens", SafeCoder, terms, reads=lambda batch, _: changed_tokens(batch)
)
