"""Supervised fine-tuning: the mean negative log-likelihood of the chosen side's answer tokens.

Dims: B rows, N scored tokens.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from lpo_jax.batch import TreeBatch
from lpo_jax.objectives.base import Objective, Options, Terms, answer_side


@dataclass(frozen=True)
class Sft(Options):
    """Options of `sft`."""

    name: Literal["sft"] = "sft"
    score_prompt: bool = False
    """score the prompt's tokens too, as the LPO authors' SFT does"""


def terms(logps: jax.Array, batch: TreeBatch, options: Sft) -> Terms:
    scored = answer_side(batch, options.score_prompt)
    return {"loss": (-jnp.where(scored, logps, 0).sum(), scored.sum().astype(logps.dtype))}


def linear(batch: TreeBatch, options: Sft) -> jax.Array:
    return jnp.where(answer_side(batch, options.score_prompt), -1.0, 0.0)


OBJECTIVE = Objective("sft", "supervised fine-tuning", Sft, terms, linear, compares_sides=False)
