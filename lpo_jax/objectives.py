"""Objectives: pure functions of per-token log-probabilities and a `TreeBatch`.

Every objective returns named ``(sum, weight)`` pairs and never a ready mean, so that gradient accumulation and data parallelism are
exact; ``"loss"`` is the pair whose quotient is minimised.

All preference objectives are one formula; they differ in the coefficients they put on the tokens of each pair:

    s(y+) = sum_n chosen[n] logp[n]        s(y-) = sum_n rejected[n] logp[n]
    z     = beta (s(y+) - s(y-)) - gamma
    loss  = -log sigmoid(z) - alpha sum_n imitate[n] logp[n]

- ``lpo``, mode ``clean`` (the default): s is the mean over a side's changed tokens, imitate the mean over the unchanged answer tokens
  of the chosen side. A side without changed tokens is dealt with by `empty_side`.
- ``lpo``, mode ``paper`` (LPO, arXiv 2506.00419, the loss of Sec. 3): s is the sum over changed tokens divided by the side's full
  length, imitate the sum (or mean) over the unchanged ones. A side without changed tokens contributes 0.
- ``lpo``, mode ``reference``: what the authors' code computes ("simpo-kl"): s is a mean over all answer tokens with weight 1 - off_mask on
  changed and off_mask on unchanged ones; tokens with id 0 carry no loss at all.
- ``simpo`` (Meng et al. 2024, Eq. 6): s is the mean over all answer tokens; nothing is imitated.

The two phases of CoSec+ compare the trained model with a frozen one as well (`lpo_jax.divergence`): ``kd`` makes a small model like a large one
of its family, ``security`` teaches adapters on that base the changed tokens and holds them to it everywhere else.

Dims: B rows, N scored tokens, P pairs in a row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lpo_jax.batch import TreeBatch
from lpo_jax.config import ConfigError, ObjectiveConfig

Terms = dict[str, tuple[jax.Array, jax.Array]]
"""Named (sum, weight) pairs of scalars."""


class Coefficients(NamedTuple):
    """What each scored token contributes to its pair, [B, N] each."""

    chosen: jax.Array
    rejected: jax.Array
    imitate: jax.Array


def coefficients(batch: TreeBatch, config: ObjectiveConfig) -> Coefficients:
    """The masking kernel: facts about tokens become weights on log-probabilities."""
    answer = batch.answer & (batch.pair >= 0)
    on_chosen, on_rejected = answer & (batch.side >= 0), answer & (batch.side <= 0)
    changed, unchanged = batch.changed, ~batch.changed
    none = jnp.zeros(batch.pair.shape)
    if config.name == "simpo":
        return Coefficients(_mean(on_chosen, batch), _mean(on_rejected, batch), none)
    if config.mode == "clean":
        return Coefficients(_mean(on_chosen & changed, batch), _mean(on_rejected & changed, batch), _mean(on_chosen & unchanged, batch))
    if config.mode == "paper":
        extra = batch.reasoning_len if config.norm_len == "answer" else 0
        chosen_len = _of_pair(jnp.maximum(batch.chosen_len + extra, 1), batch)
        rejected_len = _of_pair(jnp.maximum(batch.rejected_len + extra, 1), batch)
        plus, minus, rest = (mask.astype(none.dtype) for mask in (on_chosen & changed, on_rejected & changed, on_chosen & unchanged))
        return Coefficients(plus / chosen_len, minus / rejected_len, rest if config.imitation == "sum" else _mean(rest, batch))
    kept = batch.target != 0
    weight = jnp.where(changed, 1 - config.off_mask, config.off_mask)
    sides = []
    for side in (on_chosen, on_rejected):
        w = jnp.where(side & kept, weight, 0)
        sides.append(jnp.where(side, w / _of_pair(pair_sum(w, batch), batch), 0))  # off_mask 0 and an empty mask: NaN, as theirs
    return Coefficients(sides[0], sides[1], _mean(on_chosen & kept & unchanged, batch))


def preference(logps: jax.Array, batch: TreeBatch, config: ObjectiveConfig) -> Terms:
    """`lpo` and `simpo`: the preference loss with its SFT term, per pair.

    Terms besides ``loss``: ``preference`` and ``imitation`` (its two parts), TRL's ``rewards/*`` (beta s; accuracies and margins over
    pairs that have both sides) and ``logps/*`` (s), and ``empty_sides`` (the share of pairs with a side that has no loss).
    """
    assert config.beta is not None and config.gamma is not None
    weights = coefficients(batch, config)
    s_chosen = pair_sum(weights.chosen * logps, batch)
    s_rejected = pair_sum(weights.rejected * logps, batch)
    real = batch.chosen_len > 0
    both = real & (pair_sum(weights.chosen, batch) > 0) & (pair_sum(weights.rejected, batch) > 0)
    counted = real
    if config.name == "lpo" and config.mode == "clean":
        # A missing side stands at the other's value but takes no gradient: the side that exists is pushed at sigma(gamma)'s rate.
        has_chosen, has_rejected = pair_sum(weights.chosen, batch) > 0, pair_sum(weights.rejected, batch) > 0
        s_chosen, s_rejected = (
            jnp.where(has_chosen, s_chosen, jax.lax.stop_gradient(s_rejected)),
            jnp.where(has_rejected, s_rejected, jax.lax.stop_gradient(s_chosen)),
        )
        counted = both if config.empty_side == "skip" else real & (has_chosen | has_rejected)
    z = config.beta * (s_chosen - s_rejected) - config.gamma
    smoothing = config.label_smoothing
    prefer = jnp.where(counted, (1 - smoothing) * jax.nn.softplus(-z) + smoothing * jax.nn.softplus(z), 0)
    imitation = -pair_sum(weights.imitate * logps, batch)
    alpha = config.alpha or 0.0 if config.name == "lpo" else 0.0
    pairs, compared = real.sum().astype(logps.dtype), both.sum().astype(logps.dtype)
    margin = config.beta * (s_chosen - s_rejected)

    def over(mask: jax.Array, values: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.where(mask, values, 0).sum(), weight

    return {
        "loss": over(real, prefer + alpha * imitation, pairs),
        "preference": over(real, prefer, pairs),
        "imitation": over(real, imitation, pairs),
        "rewards/chosen": over(both, config.beta * s_chosen, compared),
        "rewards/rejected": over(both, config.beta * s_rejected, compared),
        "rewards/margins": over(both, margin, compared),
        "rewards/accuracies": over(both, (margin > 0).astype(logps.dtype), compared),
        "logps/chosen": over(both, s_chosen, compared),
        "logps/rejected": over(both, s_rejected, compared),
        "empty_sides": over(real, (~both).astype(logps.dtype), pairs),
    }


def sft(logps: jax.Array, batch: TreeBatch, config: ObjectiveConfig) -> Terms:
    """Supervised fine-tuning: mean negative log-likelihood of the chosen side's answer tokens (`score_prompt`: and the prompt's)."""
    scored = answer_side(batch, config)
    return {"loss": (-jnp.where(scored, logps, 0).sum(), scored.sum().astype(logps.dtype))}


def answer_side(batch: TreeBatch, config: ObjectiveConfig) -> jax.Array:
    """The chosen side's answer tokens, with `score_prompt` its prompt too: [B, N]."""
    scored = (batch.pair >= 0) & (batch.side >= 0)
    return scored if config.score_prompt else scored & batch.answer


def kd(logps: jax.Array, divergence: jax.Array, batch: TreeBatch, config: ObjectiveConfig) -> Terms:
    """Distillation: ``(1 - weight) * LM + weight * KL``, each a mean over the batch's answer tokens, rejected sides left out.

    Both models' softmax is over the tokenizer's ids only; the two terms are logged as ``lm`` and ``kl``.
    """
    assert config.kl is not None
    scored = answer_side(batch, config)
    weight = scored.sum().astype(logps.dtype)
    lm, kl = -jnp.where(scored, logps, 0).sum(), jnp.where(scored, divergence, 0).sum()
    return {"loss": ((1 - config.kl.weight) * lm + config.kl.weight * kl, weight), "lm": (lm, weight), "kl": (kl, weight)}


def security(logps: jax.Array, divergence: jax.Array, batch: TreeBatch, config: ObjectiveConfig) -> Terms:
    """``CE + weight * KL``, a mean over pairs: cross-entropy on the chosen side's changed tokens, divergence from the base on the others.

    Each is a mean over the pair's tokens, and 0 where there are none: a fix that only deletes teaches to stay as the base is.
    """
    assert config.kl is not None
    scored = answer_side(batch, config)
    ce = -(_mean(scored & batch.changed, batch) * logps).sum()
    kl = (_mean(scored & ~batch.changed, batch) * divergence).sum()
    pairs = (batch.chosen_len > 0).sum().astype(logps.dtype)
    return {"loss": (ce + config.kl.weight * kl, pairs), "ce": (ce, pairs), "kl": (kl, pairs)}


def linear_weights(batch: TreeBatch, config: ObjectiveConfig) -> jax.Array | None:
    """The loss sum's gradient by the log-probabilities in which it is linear: [B, N], 0 at other tokens; None where it is in none."""
    if config.name == "sft":
        return jnp.where(answer_side(batch, config), -1.0, 0.0)
    if config.name == "simpo" or config.mode == "reference":
        return None
    weights = coefficients(batch, config)
    return jnp.where((weights.chosen == 0) & (weights.rejected == 0), -(config.alpha or 0.0) * weights.imitate, 0)


OBJECTIVES = {"sft": sft, "lpo": preference, "simpo": preference}
WITH_FROZEN = {"kd": kd, "security": security}


def heldout_metrics(logps: jax.Array, batch: TreeBatch) -> Terms:
    """What a run is judged by, independent of its objective.

    - ``pair_accuracy``: share of pairs whose secure side is likelier on its changed tokens (mean log-probability).
    - ``margin``: mean of that difference, in nats a token. Both are over the pairs that change tokens on both sides.
    - ``changed_nll``, ``unchanged_nll``: negative log-likelihood a token of the chosen side's changed and other answer tokens.
    """
    answer = batch.answer & (batch.pair >= 0)
    sides = [answer & batch.changed & (batch.side == side) for side in (1, -1)]
    counts = [pair_sum(side.astype(logps.dtype), batch) for side in sides]
    means = [pair_sum(_mean(side, batch) * logps, batch) for side in sides]
    both = (counts[0] > 0) & (counts[1] > 0)
    margin = jnp.where(both, means[0] - means[1], 0)
    compared = both.sum().astype(logps.dtype)
    rest = answer & (batch.side >= 0) & ~batch.changed
    return {
        "pair_accuracy": ((margin > 0).sum().astype(logps.dtype), compared),
        "margin": (margin.sum(), compared),
        "changed_nll": (-jnp.where(sides[0], logps, 0).sum(), counts[0].sum()),
        "unchanged_nll": (-jnp.where(rest, logps, 0).sum(), rest.sum().astype(logps.dtype)),
    }


def check_data(config: ObjectiveConfig, trimmed: bool, scores_prompt: bool, plain: int = 0) -> None:
    """Refuse an objective that a shard set can't serve; `plain` of its rows have an answer but no second side.

    Raises:
      ConfigError: naming the objective and how to build the shards.
    """
    if plain and config.name in ("lpo", "simpo", "security"):
        raise ConfigError(
            f"objective {config.name} learns from what differs between two sides, but {plain} rows of these shards are plain instructions "
            "with a response; those serve sft and kd: build the pairs into a shard set of their own"
        )
    if trimmed and config.name == "simpo":
        raise ConfigError(
            "objective simpo scores whole rejected answers, but these shards are trimmed; build them with `lpo-data build --untrimmed`"
        )
    if trimmed and config.name == "lpo" and config.mode == "reference":
        raise ConfigError(
            "objective lpo in mode reference weighs unchanged rejected tokens (and averages the whole answer where a mask is empty), "
            "but these shards are trimmed; build them with `lpo-data build --masks reference --untrimmed`"
        )
    if config.score_prompt and not scores_prompt:
        raise ConfigError("objective.score_prompt needs shards with scored prompts; build them with `lpo-data build --score-prompt`")


def pair_sum(values: jax.Array, batch: TreeBatch) -> jax.Array:
    """Sums over each pair's scored tokens: [B, N] -> [B, P]."""
    pairs = batch.chosen_len.shape[1]
    at = jnp.where(batch.pair < 0, pairs, batch.pair)
    return jax.vmap(lambda v, i: jax.ops.segment_sum(v, i, pairs + 1))(values, at)[:, :pairs]


def _of_pair(per_pair: jax.Array, batch: TreeBatch) -> jax.Array:
    """Each scored token's pair value: [B, P] -> [B, N]."""
    return jnp.take_along_axis(per_pair, jnp.maximum(batch.pair, 0), axis=1)


def _mean(mask: jax.Array, batch: TreeBatch) -> jax.Array:
    """Coefficients of the mean over a pair's masked tokens; all 0 where it has none."""
    ones = mask.astype(jnp.result_type(float))
    return ones / jnp.maximum(_of_pair(pair_sum(ones, batch), batch), 1)
