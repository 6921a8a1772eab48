"""SimPO (Meng et al. 2024, Eq. 6): s is the mean over all answer tokens; nothing is imitated. The formula is `preference`'s.

Dims: B rows, N scored tokens.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from foundation.settings import Finite, PositiveNumber, Smoothing
from lpo_jax.batch import TreeBatch
from lpo_jax.objectives.base import Objective, Options, Terms, pair_mean
from lpo_jax.objectives.preference import Coefficients, answer_sides, preference_terms, whole_answers


@dataclass(frozen=True, kw_only=True)
class Simpo(Options):
    """Options of `simpo`."""

    name: Literal["simpo"] = "simpo"
    beta: PositiveNumber
    """scale of the preference term"""
    gamma: Finite
    """target margin, absolute (SimPO's ratio is gamma / beta)"""
    label_smoothing: Smoothing = 0.0
    """share of pairs whose sides are taken for swapped"""


def coefficients(batch: TreeBatch, options: Simpo) -> Coefficients:
    on_chosen, on_rejected = answer_sides(batch)
    return Coefficients(pair_mean(on_chosen, batch), pair_mean(on_rejected, batch), jnp.zeros(batch.pair.shape))


def terms(logps: jax.Array, batch: TreeBatch, options: Simpo) -> Terms:
    weights = coefficients(batch, options)
    return preference_terms(logps, batch, weights, beta=options.beta, gamma=options.gamma, label_smoothing=options.label_smoothing)


OBJECTIVE = Objective("simpo", "simple preference optimization", Simpo, terms, whole_rejected=whole_answers)
