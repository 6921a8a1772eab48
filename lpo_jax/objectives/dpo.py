"""Direct preference optimization (DPO, Rafailov et al. 2023, arXiv 2305.18290, Eq. 7), over whole answers or over changed tokens.

The formula is `preference`'s with log-ratios to the reference, the model at the stage's start. Coefficients: 1 on every token of a side that
`tokens` names. A trunk's token is on both sides: it counts in each side's reward and cancels in their difference. A side without such tokens
has reward 0. Localised (``tokens: changed``), the masks m+ and m- say what is compared, and a trimmed tree holds all of it.

Losses: ``sigmoid`` is DPO's; its label smoothing is conservative DPO's (Mitchell 2023). ``hinge`` is SLiC's on DPO's rewards (Liu et al. 2023,
arXiv 2309.06657). ``ipo`` (Azar et al. 2023, arXiv 2310.12036, Eq. 17) compares log-ratios a token, which the paper doesn't say: TRL asked its
authors.

Dims: B rows, N scored tokens.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from foundation.settings import NonEmpty, PositiveNumber, Smoothing
from lpo_jax.batch import TreeBatch
from lpo_jax.objectives.base import Objective, ReferenceOptions, Terms
from lpo_jax.objectives.preference import Coefficients, answer_sides, changed_tokens, check_smoothing, preference_terms, whole_answers


@dataclass(frozen=True, kw_only=True)
class Dpo(ReferenceOptions):
    """Options of `dpo`."""

    name: Literal["dpo"] = "dpo"
    beta: PositiveNumber
    """scale of the rewards; ipo: the target is a difference of 1 / (2 beta)"""
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    """sigmoid: DPO's; ipo: squared distance to the target; hinge: max(0, 1 - margin)"""
    label_smoothing: Smoothing = 0.0
    """sigmoid: share of pairs whose sides are taken for swapped"""
    length_normalised: bool = False
    """compare log-ratios a token, not their sums; ipo always does"""
    tokens: Literal["answer", "changed"] = "answer"
    """which tokens of a side are compared: whole answers, or the changed ones (localised DPO)"""
    reference: NonEmpty | None = None
    """a directory for the reference's log-probabilities, computed when the stage begins, on a disk; null: the reference, which is the model at the
    stage's start, runs inside the step"""

    def __post_init__(self) -> None:
        check_smoothing(self, self.loss, self.label_smoothing)


def coefficients(batch: TreeBatch, options: Dpo) -> Coefficients:
    changed = batch.changed if options.tokens == "changed" else True
    plus, minus = (jnp.where(side & changed, 1.0, 0.0) for side in answer_sides(batch))
    return Coefficients(plus, minus, jnp.zeros_like(plus))


def terms(logps: jax.Array, batch: TreeBatch, options: Dpo, reference: jax.Array) -> Terms:
    return preference_terms(
        logps,
        batch,
        coefficients(batch, options),
        beta=options.beta,
        loss=options.loss,
        label_smoothing=options.label_smoothing,
        reference=reference,
        per_token=options.length_normalised or options.loss == "ipo",
    )


def reads(batch: TreeBatch, options: Dpo) -> jax.Array | None:
    return changed_tokens(batch) if options.tokens == "changed" else None


def whole_rejected(options: Dpo) -> str | None:
    return f"{whole_answers(options)}, or set tokens: changed" if options.tokens == "answer" else None


OBJECTIVE = Objective("dpo", "direct preference optimization", Dpo, terms, reads=reads, frozen="reference", whole_rejected=whole_rejected)
