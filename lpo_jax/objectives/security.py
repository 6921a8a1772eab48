"""Security training (CoSec+, phase 2): adapters learn the changed tokens of fixes, and stay as the base model is everywhere else.

    loss = CE + weight * KL        cross-entropy on the chosen side's changed tokens, divergence from the base on the others

Each is a mean over the pair's tokens, and 0 where there are none: a fix that only deletes teaches to stay as the base is. The loss is a mean
over pairs.

Dims: B rows, N scored tokens.
"""

from dataclasses import dataclass
from typing import Literal

import jax

from lpo_jax.batch import TreeBatch
from lpo_jax.objectives.base import FrozenOptions, KlConfig, Objective, Terms, answer_side, pair_mean


@dataclass(frozen=True, kw_only=True)
class Security(FrozenOptions):
    """Options of `security`."""

    name: Literal["security"] = "security"
    kl: KlConfig
    """the divergence from the base model"""
    score_prompt: bool = False
    """score the prompt's tokens too: CoSec+ trains on whole functions"""


def terms(logps: jax.Array, batch: TreeBatch, options: Security, divergence: jax.Array) -> Terms:
    """The two terms are logged as ``ce`` and ``kl``."""
    scored = answer_side(batch, options.score_prompt)
    ce = -(pair_mean(scored & batch.changed, batch) * logps).sum()
    kl = (pair_mean(scored & ~batch.changed, batch) * divergence).sum()
    pairs = (batch.chosen_len > 0).sum().astype(logps.dtype)
    return {"loss": (ce + options.kl.weight * kl, pairs), "ce": (ce, pairs), "kl": (kl, pairs)}


OBJECTIVE = Objective("security", "security training beside a frozen base", Security, terms, frozen="base")
