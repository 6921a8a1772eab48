"""The formula that preference objectives share; they differ in the coefficients they put on the tokens of each pair, and in the loss L.

    s(y+) = sum_n chosen[n] v[n]        s(y-) = sum_n rejected[n] v[n]
    z     = beta (s(y+) - s(y-)) - gamma
    loss  = L(z) - alpha sum_n imitate[n] logp[n]

v is the log-probability; with a reference model it is the log-ratio, logp - reference, and beta s is DPO's implicit reward.

Dims: B rows, N scored tokens, P pairs in a row.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from foundation.errors import ConfigError
from lpo_jax.batch import TreeBatch
from lpo_jax.objectives.base import Options, Terms, pair_sum


class Coefficients(NamedTuple):
    """What each scored token contributes to its pair, [B, N] each."""

    chosen: jax.Array
    rejected: jax.Array
    imitate: jax.Array


def answer_sides(batch: TreeBatch) -> tuple[jax.Array, jax.Array]:
    """The answer tokens of the chosen and of the rejected side, [B, N] bool each; the trunk's belong to both."""
    answer = batch.answer & (batch.pair >= 0)
    return answer & (batch.side >= 0), answer & (batch.side <= 0)


def changed_tokens(batch: TreeBatch) -> jax.Array:
    """The changed answer tokens of both sides, [B, N] bool."""
    return batch.answer & batch.changed & (batch.pair >= 0)


def side_sums(values: jax.Array, weights: Coefficients, batch: TreeBatch) -> tuple[jax.Array, jax.Array]:
    """Each pair's weighted sums over its chosen and its rejected side: [B, N] -> [B, P] each."""
    return pair_sum(weights.chosen * values, batch), pair_sum(weights.rejected * values, batch)


def preference_terms(
    logps: jax.Array,
    batch: TreeBatch,
    weights: Coefficients,
    *,
    beta: float,
    gamma: float = 0.0,
    alpha: float = 0.0,
    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid",
    label_smoothing: float = 0.0,
    reference: jax.Array | None = None,
    per_token: bool = False,
    empty_side: Literal["detach", "skip"] | None = None,
) -> Terms:
    """The preference loss with its imitation term, per pair: the terms of `pair_terms`.

    Args:
      loss: "sigmoid": -log sigmoid(z), or with `label_smoothing` e of it (1 - e) times, and e times the loss of -z; "hinge": max(0, 1 - z);
        "ipo" (Azar et al. 2023, Eq. 17): (z / beta - 1 / (2 beta))^2.
      reference: [B, N], the reference model's log-probabilities; None: there is none.
      per_token: z compares each side's s divided by the sum of its coefficients; the rewards that are logged stay beta s, as in TRL.
      empty_side: what becomes of a side without coefficients. "detach": it stands at the other side's value but takes no gradient, so the side
        that exists is pushed at sigma(gamma)'s rate; "skip": the pair has no preference term; None: its s is 0, as the formula says.
    """
    scores = side_sums(logps if reference is None else logps - reference, weights, batch)
    counts = side_sums(jnp.ones_like(logps), weights, batch)
    counted = batch.chosen_len > 0
    if empty_side is not None:
        has_chosen, has_rejected = counts[0] > 0, counts[1] > 0
        scores = (
            jnp.where(has_chosen, scores[0], jax.lax.stop_gradient(scores[1])),
            jnp.where(has_rejected, scores[1], jax.lax.stop_gradient(scores[0])),
        )
        counted &= (has_chosen & has_rejected) if empty_side == "skip" else (has_chosen | has_rejected)
    s_chosen, s_rejected = (s / jnp.maximum(n, 1) for s, n in zip(scores, counts, strict=True)) if per_token else scores
    z = beta * (s_chosen - s_rejected) - gamma
    if loss == "sigmoid":
        prefer = (1 - label_smoothing) * jax.nn.softplus(-z) + label_smoothing * jax.nn.softplus(z)
    elif loss == "hinge":
        prefer = jax.nn.relu(1 - z)
    else:
        prefer = jnp.square((z - 0.5) / beta)
    return pair_terms(logps, batch, weights, jnp.where(counted, prefer, 0), scores, beta, alpha)


def pair_terms(
    logps: jax.Array,
    batch: TreeBatch,
    weights: Coefficients,
    prefer: jax.Array,
    scores: tuple[jax.Array, jax.Array],
    beta: float,
    alpha: float,
) -> Terms:
    """What is minimised and logged of pairs whose preference loss `prefer` [B, P] was found from both sides' `scores`, [B, P] each.

    Terms besides ``loss``: ``preference`` and ``imitation`` (its two parts), TRL's ``rewards/*`` (beta s; accuracies and margins over
    pairs that have both sides) and ``logps/*`` (the trained model's), and ``empty_sides`` (the share of pairs with a side that has no loss).
    """
    imitation = -pair_sum(weights.imitate * logps, batch)
    real = batch.chosen_len > 0
    both = real & (pair_sum(weights.chosen, batch) > 0) & (pair_sum(weights.rejected, batch) > 0)
    pairs, compared = real.sum().astype(logps.dtype), both.sum().astype(logps.dtype)
    logps_chosen, logps_rejected = side_sums(logps, weights, batch)
    rewards_chosen, rewards_rejected = beta * scores[0], beta * scores[1]

    def over(mask: jax.Array, values: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.where(mask, values, 0).sum(), weight

    return {
        "loss": over(real, prefer + alpha * imitation, pairs),
        "preference": over(real, prefer, pairs),
        "imitation": over(real, imitation, pairs),
        "rewards/chosen": over(both, rewards_chosen, compared),
        "rewards/rejected": over(both, rewards_rejected, compared),
        "rewards/margins": over(both, rewards_chosen - rewards_rejected, compared),
        "rewards/accuracies": over(both, (rewards_chosen > rewards_rejected).astype(logps.dtype), compared),
        "logps/chosen": over(both, logps_chosen, compared),
        "logps/rejected": over(both, logps_rejected, compared),
        "empty_sides": over(real, (~both).astype(logps.dtype), pairs),
    }


def check_smoothing(options: Options, loss: str, label_smoothing: float) -> None:
    """Refuse label smoothing where the loss knows none.

    Raises:
      ConfigError: naming the objective and its loss.
    """
    if label_smoothing and loss != "sigmoid":
        raise ConfigError(f"objective {options.name}: label_smoothing belongs to loss: sigmoid, not to {loss}; leave one of the two out")


def whole_answers(options: Options) -> str:
    """`Objective.whole_rejected` of those that score every answer token of both sides."""
    return "scores whole rejected answers, but these shards are trimmed; build them with `lpo-data build --untrimmed`"
