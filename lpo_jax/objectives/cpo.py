"""Contrastive preference optimization (CPO, Xu et al. 2024, arXiv 2401.08417): DPO without a reference, beside imitation of the chosen side.

The formula is `preference`'s. Coefficients: 1 on every answer token of either side (a trunk's token cancels in their difference); imitate is
the mean over the chosen side's answer tokens.

Dims: B rows, N scored tokens.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from foundation.settings import PositiveNumber, Smoothing, Weight
from lpo_jax.batch import TreeBatch
from lpo_jax.objectives.base import Objective, Options, Terms, pair_mean
from lpo_jax.objectives.preference import Coefficients, answer_sides, check_smoothing, preference_terms, whole_answers


@dataclass(frozen=True, kw_only=True)
class Cpo(Options):
    """Options of `cpo`."""

    name: Literal["cpo"] = "cpo"
    beta: PositiveNumber
    """scale of the preference term"""
    alpha: Weight = 1.0
    """weight of the imitation term, the mean negative log-likelihood of the chosen answer"""
    loss: Literal["sigmoid", "hinge"] = "sigmoid"
    """sigmoid: CPO's; hinge: max(0, 1 - margin), SLiC's"""
    label_smoothing: Smoothing = 0.0
    """sigmoid: share of pairs whose sides are taken for swapped"""

    def __post_init__(self) -> None:
        check_smoothing(self, self.loss, self.label_smoothing)


def terms(logps: jax.Array, batch: TreeBatch, options: Cpo) -> Terms:
    on_chosen, on_rejected = answer_sides(batch)
    weights = Coefficients(*(jnp.where(side, 1.0, 0.0) for side in (on_chosen, on_rejected)), pair_mean(on_chosen, batch))
    return preference_terms(
        logps, batch, weights, beta=options.beta, alpha=options.alpha, loss=options.loss, label_smoothing=options.label_smoothing
    )


OBJECTIVE = Objective("cpo", "contrastive preference optimization", Cpo, terms, whole_rejected=whole_answers)
