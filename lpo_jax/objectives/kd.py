"""Distillation (CoSec+, phase 1): a small model becomes like a large one of its family.

    loss = (1 - weight) * LM + weight * KL        each a mean over the batch's answer tokens, rejected sides left out

Dims: B rows, N scored tokens.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from foundation.errors import ConfigError
from lpo_jax.batch import TreeBatch
from lpo_jax.objectives.base import FrozenOptions, KlConfig, Objective, Terms, answer_side


@dataclass(frozen=True, kw_only=True)
class Kd(FrozenOptions):
    """Options of `kd`."""

    name: Literal["kd"] = "kd"
    kl: KlConfig
    """the divergence from the teacher"""
    score_prompt: bool = False
    """score the prompt's tokens too"""

    def __post_init__(self) -> None:
        if self.kl.teacher is None:
            raise ConfigError("objective kd: set kl.teacher to a model's directory, or to one that `lpo teacher` wrote")
        if self.kl.weight > 1:
            raise ConfigError(f"objective kd: kl.weight is the teacher's share of the loss, in [0, 1], not {self.kl.weight}")


def terms(logps: jax.Array, batch: TreeBatch, options: Kd, divergence: jax.Array) -> Terms:
    """Both models' softmax is over the tokenizer's ids only; the two terms are logged as ``lm`` and ``kl``."""
    scored = answer_side(batch, options.score_prompt)
    weight = scored.sum().astype(logps.dtype)
    lm, kl = -jnp.where(scored, logps, 0).sum(), jnp.where(scored, divergence, 0).sum()
    return {"loss": ((1 - options.kl.weight) * lm + options.kl.weight * kl, weight), "lm": (lm, weight), "kl": (kl, weight)}


OBJECTIVE = Objective("kd", "distillation from a teacher", Kd, terms, frozen="teacher", compares_sides=False)
