"""The formula that preference objectives share; they differ in the coefficients they put on the tokens of each pair.

    s(y+) = sum_n chosen[n] logp[n]        s(y-) = sum_n rejected[n] logp[n]
    z     = beta (s(y+) - s(y-)) - gamma
    loss  = -log sigmoid(z) - alpha sum_n imitate[n] logp[n]

Dims: B rows, N scored tokens, P pairs in a row.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from lpo_jax.batch import TreeBatch
from lpo_jax.objectives.base import Terms, pair_sum


class Coefficients(NamedTuple):
    """What each scored token contributes to its pair, [B, N] each."""

    chosen: jax.Array
    rejected: jax.Array
    imitate: jax.Array


def answer_sides(batch: TreeBatch) -> tuple[jax.Array, jax.Array]:
    """The answer tokens of the chosen and of the rejected side, [B, N] bool each; the trunk's belong to both."""
    answer = batch.answer & (batch.pair >= 0)
    return answer & (batch.side >= 0), answer & (batch.side <= 0)


def preference_terms(
    logps: jax.Array,
    batch: TreeBatch,
    weights: Coefficients,
    *,
    beta: float,
    gamma: float,
    alpha: float = 0.0,
    label_smoothing: float = 0.0,
    empty_side: Literal["detach", "skip"] | None = None,
) -> Terms:
    """The preference loss with its imitation term, per pair.

    Terms besides ``loss``: ``preference`` and ``imitation`` (its two parts), TRL's ``rewards/*`` (beta s; accuracies and margins over
    pairs that have both sides) and ``logps/*`` (s), and ``empty_sides`` (the share of pairs with a side that has no loss).

    Args:
      empty_side: what becomes of a side without coefficients. "detach": it stands at the other side's value but takes no gradient, so the side
        that exists is pushed at sigma(gamma)'s rate; "skip": the pair has no preference term; None: its s is 0, as the formula says.
    """
    s_chosen = pair_sum(weights.chosen * logps, batch)
    s_rejected = pair_sum(weights.rejected * logps, batch)
    real = batch.chosen_len > 0
    has_chosen, has_rejected = pair_sum(weights.chosen, batch) > 0, pair_sum(weights.rejected, batch) > 0
    both = real & has_chosen & has_rejected
    counted = real
    if empty_side is not None:
        s_chosen, s_rejected = (
            jnp.where(has_chosen, s_chosen, jax.lax.stop_gradient(s_rejected)),
            jnp.where(has_rejected, s_rejected, jax.lax.stop_gradient(s_chosen)),
        )
        counted = both if empty_side == "skip" else real & (has_chosen | has_rejected)
    z = beta * (s_chosen - s_rejected) - gamma
    prefer = jnp.where(counted, (1 - label_smoothing) * jax.nn.softplus(-z) + label_smoothing * jax.nn.softplus(z), 0)
    imitation = -pair_sum(weights.imitate * logps, batch)
    pairs, compared = real.sum().astype(logps.dtype), both.sum().astype(logps.dtype)
    margin = beta * (s_chosen - s_rejected)

    def over(mask: jax.Array, values: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.where(mask, values, 0).sum(), weight

    return {
        "loss": over(real, prefer + alpha * imitation, pairs),
        "preference": over(real, prefer, pairs),
        "imitation": over(real, imitation, pairs),
        "rewards/chosen": over(both, beta * s_chosen, compared),
        "rewards/rejected": over(both, beta * s_rejected, compared),
        "rewards/margins": over(both, margin, compared),
        "rewards/accuracies": over(both, (margin > 0).astype(logps.dtype), compared),
        "logps/chosen": over(both, s_chosen, compared),
        "logps/rejected": over(both, s_rejected, compared),
        "empty_sides": over(real, (~both).astype(logps.dtype), pairs),
    }
