"""What an objective is, and the sums over tokens and pairs that objectives are made of.

An objective is one record, `Objective`, in a file of its own. It turns the log-probabilities of a batch's scored tokens into named
``(sum, weight)`` pairs and never into a ready mean, so that gradient accumulation and data parallelism are exact: sums are added up over
microbatches and devices, and divided once. ``"loss"`` is the pair whose quotient is minimised.

Dims: B rows, N scored tokens, P pairs in a row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from data_pipeline.shards import Manifest
from foundation.errors import ConfigError
from foundation.settings import Settings, Weight
from lpo_jax.batch import TreeBatch

Terms = dict[str, tuple[jax.Array, jax.Array]]
"""Named (sum, weight) pairs of scalars."""


def means(terms: Terms) -> dict[str, float]:
    """(sum, weight) pairs to means; a term without weight is left out."""
    return {name: float(total) / float(weight) for name, (total, weight) in terms.items() if weight > 0}


def add(total: Terms | None, terms: Terms) -> Terms:
    """Sum of (sum, weight) pairs over batches."""
    return terms if total is None else {name: (total[name][0] + s, total[name][1] + w) for name, (s, w) in terms.items()}


class Options(Settings):
    """An objective's own part of the config: each record's `options` is a frozen dataclass derived from this."""

    name: str


def nothing_is_linear(batch: TreeBatch, options: Options) -> None:
    """What holds of an objective that doesn't claim anything else: the loss is linear in no token's log-probability."""


def reads_all(batch: TreeBatch, options: Options) -> None:
    """What holds of an objective that needs the log-probability of every scored token."""


def any_shards(options: Options) -> None:
    """What holds of an objective that scores chosen sides, or changed tokens only."""


@dataclass(frozen=True)
class Objective:
    """One objective: all that training, planning and reports must know of it.

    Attributes:
      name: the config's ``objective.name``.
      title: what reports call it.
      options: its own part of the config, a frozen dataclass; the field ``name`` is ``Literal[name]``.
      terms: the objective: (logps [B, N], batch, options) -> terms. With a `frozen` model it takes a fourth argument, [B, N]: the divergence
        from that model at each scored token, or, of a "reference", its log-probability.
      linear: (batch, options) -> [B, N] or None: the gradient of the loss *sum* by each log-probability that the loss is linear in, 0 at
        other tokens. It lets the head's gradient be computed beside the log-probabilities. A claim that isn't true makes gradients wrong.
      reads: (batch, options) -> [B, N] bool or None: the tokens whose log-probabilities it needs. At others they are 0: the head isn't applied.
      frozen: the model that the trained one is compared with: a "teacher" (``options.kl.teacher``), the "base" model beneath the adapters, or
        the "reference": the model as it was at the stage's start.
      compares_sides: it learns from what differs between two sides, so plain rows (an answer and nothing beside it) can't serve it.
      whole_rejected: options -> how to build shards that have the whole rejected sides it scores; None: it needs no such shards.
    """

    name: str
    title: str
    options: type[Options]
    terms: Callable[..., Terms]
    linear: Callable[[TreeBatch, Any], jax.Array | None] = nothing_is_linear
    reads: Callable[[TreeBatch, Any], jax.Array | None] = reads_all
    frozen: Literal["teacher", "base", "reference"] | None = None
    compares_sides: bool = True
    whole_rejected: Callable[[Any], str | None] = any_shards

    def check_data(self, options: Options, manifest: Manifest) -> None:
        """Refuse shards that can't serve the objective.

        Raises:
          ConfigError: naming the objective and how to build the shards.
        """
        if manifest.plain and self.compares_sides:
            raise ConfigError(
                f"objective {self.name} learns from what differs between two sides, but {manifest.plain} rows of these shards are plain "
                "instructions with a response; those serve sft and kd: build the pairs into a shard set of their own"
            )
        if manifest.trimmed and (how := self.whole_rejected(options)):
            raise ConfigError(f"objective {self.name} {how}")
        if getattr(options, "score_prompt", False) and not manifest.scores_prompt:
            raise ConfigError("objective.score_prompt needs shards with scored prompts; build them with `lpo-data build --score-prompt`")


@dataclass(frozen=True)
class KlConfig(Settings):
    """A Kullback-Leibler divergence between the trained model and a frozen one: the teacher of `kd`, the base model of `security`."""

    direction: Literal["reverse", "forward"]
    """reverse: KL(trained || frozen); forward: KL(frozen || trained)"""
    weight: Weight
    """kd: (1 - weight) * LM + weight * KL; security: CE + weight * KL"""
    teacher: str | None = None
    """kd: a Hugging Face directory, a hub id, or a directory that `lpo teacher` wrote"""


class ReferenceOptions(Options):
    """Options of an objective that compares the trained model with the reference, itself at the stage's start."""

    reference: str | None


class FrozenOptions(Options):
    """Options of an objective that compares the trained model with a frozen one."""

    kl: KlConfig
    score_prompt: bool


def answer_side(batch: TreeBatch, score_prompt: bool) -> jax.Array:
    """The chosen side's answer tokens, with `score_prompt` its prompt too: [B, N] bool."""
    scored = (batch.pair >= 0) & (batch.side >= 0)
    return scored if score_prompt else scored & batch.answer


def pair_sum(values: jax.Array, batch: TreeBatch) -> jax.Array:
    """Sums over each pair's scored tokens: [B, N] -> [B, P]."""
    pairs = batch.chosen_len.shape[1]
    at = jnp.where(batch.pair < 0, pairs, batch.pair)
    return jax.vmap(lambda v, i: jax.ops.segment_sum(v, i, pairs + 1))(values, at)[:, :pairs]


def of_pair(per_pair: jax.Array, batch: TreeBatch) -> jax.Array:
    """Each scored token's pair value: [B, P] -> [B, N]."""
    return jnp.take_along_axis(per_pair, jnp.maximum(batch.pair, 0), axis=1)


def pair_mean(mask: jax.Array, batch: TreeBatch) -> jax.Array:
    """Coefficients [B, N] of the mean over a pair's masked tokens; all 0 where it has none. Three masked tokens get a third each."""
    ones = mask.astype(jnp.result_type(float))
    return ones / jnp.maximum(of_pair(pair_sum(ones, batch), batch), 1)


def log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) of x <= 0: the log-probability of anything but an event of log-probability x; [...] -> [...].

    It is finite everywhere, with its gradient: a p that `x`'s numbers can't tell from 1 is taken for the largest that they can, and takes no gradient.
    """
    return jnp.log(-jnp.expm1(jnp.minimum(x, -jnp.finfo(x.dtype).eps)))
