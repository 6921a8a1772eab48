"""Target-DPO (Wu et al. 2025, arXiv 2503.02783): DPO that rewards the whole chosen answer and penalises only the rejected side's errors.

What the authors' code computes (JieWu02/Target-DPO, scripts/customer_trainer.py): the formula is `preference`'s with log-ratios to the
reference. Coefficients: 1 on every answer token of the chosen side, the trunk's included, and 1 on the changed tokens of the rejected one;
imitate is the mean over the chosen answer (their `rpo_alpha`). A trunk's token counts for the chosen side only, so here it doesn't cancel.

Dims: B rows, N scored tokens.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from foundation.settings import NonEmpty, PositiveNumber, Weight
from lpo_jax.batch import TreeBatch
from lpo_jax.objectives.base import Objective, ReferenceOptions, Terms, pair_mean
from lpo_jax.objectives.preference import Coefficients, answer_sides, preference_terms


@dataclass(frozen=True, kw_only=True)
class TargetDpo(ReferenceOptions):
    """Options of `target_dpo`."""

    name: Literal["target_dpo"] = "target_dpo"
    beta: PositiveNumber
    """scale of the rewards"""
    alpha: Weight = 1.0
    """weight of the imitation term, the mean negative log-likelihood of the chosen answer"""
    reference: NonEmpty | None = None
    """a directory for the reference's log-probabilities, computed when the stage begins, on a disk; null: the reference, which is the model at the
    stage's start, runs inside the step"""


def terms(logps: jax.Array, batch: TreeBatch, options: TargetDpo, reference: jax.Array) -> Terms:
    on_chosen, on_rejected = answer_sides(batch)
    plus, minus = (jnp.where(mask, 1.0, 0.0) for mask in (on_chosen, on_rejected & batch.changed))
    weights = Coefficients(plus, minus, pair_mean(on_chosen, batch))
    return preference_terms(logps, batch, weights, beta=options.beta, alpha=options.alpha, reference=reference)


OBJECTIVE = Objective("target_dpo", "DPO that targets the errors", TargetDpo, terms, frozen="reference")
