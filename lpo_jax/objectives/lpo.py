"""Localized preference optimization (LPO, arXiv 2506.00419): a preference loss on changed tokens, imitation of the unchanged ones.

The formula is `lpo_jax.objectives.preference`'s. Its coefficients, by mode:

- ``clean`` (the default): s is the mean over a side's changed tokens, imitate the mean over the unchanged answer tokens of the chosen
  side. A side without changed tokens is dealt with by `empty_side`.
- ``paper`` (the loss of Sec. 3): s is the sum over changed tokens divided by the side's full length, imitate the sum (or mean) over the
  unchanged ones. A side without changed tokens contributes 0.
- ``reference``: what the authors' code computes ("simpo-kl"): s is a mean over all answer tokens with weight 1 - off_mask on changed
  and off_mask on unchanged ones; tokens with id 0 carry no loss at all.

Dims: B rows, N scored tokens.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from foundation.settings import Finite, PositiveNumber, Share, Smoothing, Weight
from lpo_jax.batch import TreeBatch
from lpo_jax.objectives.base import Objective, Options, Terms, of_pair, pair_mean, pair_sum
from lpo_jax.objectives.preference import Coefficients, answer_sides, preference_terms


@dataclass(frozen=True, kw_only=True)
class Lpo(Options):
    """Options of `lpo`. No default of beta, gamma and alpha holds for every mode."""

    name: Literal["lpo"] = "lpo"
    mode: Literal["clean", "paper", "reference"] = "clean"
    """clean: means over changed tokens; paper: the paper's formula; reference: what the authors' code computes"""
    beta: PositiveNumber
    """scale of the preference term"""
    gamma: Finite
    """target margin, absolute (SimPO's ratio is gamma / beta)"""
    alpha: Weight
    """weight of the imitation term, on unchanged tokens"""
    empty_side: Literal["detach", "skip"] = "detach"
    """clean: a side without changed tokens is replaced by the detached other, or the pair's preference term is skipped"""
    norm_len: Literal["code", "answer"] = "code"
    """paper: does |y| count the code, or reasoning and code?"""
    imitation: Literal["sum", "mean"] = "sum"
    """paper: reduction of the imitation term"""
    off_mask: Share = 1e-6
    """reference: weight of unchanged tokens, the authors' 1 - loss_mask_val"""
    label_smoothing: Smoothing = 0.0
    """share of pairs whose sides are taken for swapped"""


def coefficients(batch: TreeBatch, options: Lpo) -> Coefficients:
    """The masking kernel: facts about tokens become weights on log-probabilities."""
    on_chosen, on_rejected = answer_sides(batch)
    changed, unchanged = batch.changed, ~batch.changed
    if options.mode == "clean":
        masks = on_chosen & changed, on_rejected & changed, on_chosen & unchanged
        return Coefficients(*(pair_mean(mask, batch) for mask in masks))
    if options.mode == "paper":
        extra = batch.reasoning_len if options.norm_len == "answer" else 0
        chosen_len = of_pair(jnp.maximum(batch.chosen_len + extra, 1), batch)
        rejected_len = of_pair(jnp.maximum(batch.rejected_len + extra, 1), batch)
        number = jnp.result_type(float)
        plus, minus, rest = (mask.astype(number) for mask in (on_chosen & changed, on_rejected & changed, on_chosen & unchanged))
        return Coefficients(plus / chosen_len, minus / rejected_len, rest if options.imitation == "sum" else pair_mean(rest, batch))
    kept = batch.target != 0
    weight = jnp.where(changed, 1 - options.off_mask, options.off_mask)
    sides = []
    for side in (on_chosen, on_rejected):
        w = jnp.where(side & kept, weight, 0)
        sides.append(jnp.where(side, w / of_pair(pair_sum(w, batch), batch), 0))  # off_mask 0 and an empty mask: NaN, as theirs
    return Coefficients(sides[0], sides[1], pair_mean(on_chosen & kept & unchanged, batch))


def terms(logps: jax.Array, batch: TreeBatch, options: Lpo) -> Terms:
    return preference_terms(
        logps,
        batch,
        coefficients(batch, options),
        beta=options.beta,
        gamma=options.gamma,
        alpha=options.alpha,
        label_smoothing=options.label_smoothing,
        empty_side=options.empty_side if options.mode == "clean" else None,
    )


def linear(batch: TreeBatch, options: Lpo) -> jax.Array | None:
    """The imitation term is linear; in mode reference all tokens are in the preference term as well."""
    if options.mode == "reference":
        return None
    weights = coefficients(batch, options)
    return jnp.where((weights.chosen == 0) & (weights.rejected == 0), -options.alpha * weights.imitate, 0)


def whole_rejected(options: Lpo) -> str | None:
    if options.mode != "reference":
        return None
    return (
        "in mode reference weighs unchanged rejected tokens (and averages the whole answer where a mask is empty), "
        "but these shards are trimmed; build them with `lpo-data build --masks reference --untrimmed`"
    )


OBJECTIVE = Objective("lpo", "localized preference optimization", Lpo, terms, linear, whole_rejected=whole_rejected)
