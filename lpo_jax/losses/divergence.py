"""Kullback-Leibler divergences from a frozen model at the scored tokens, without ever holding [tokens, V] logits.

A chunk of scored positions at a time goes through both heads. The backward pass computes the chunk's logits again. Each device works on its
own rows; the head's columns are cut along `tensor`. The head's gradient, if it is trained, is summed over the devices once, after the last chunk.

Dims: B rows, T tokens, N scored tokens in a row, D model, V vocabulary, K tokens kept of a teacher's distribution, C tokens in a chunk.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lpo_jax.batch import TeacherTop, TreeBatch
from lpo_jax.losses.chunks import Head, States, logits, wide
from lpo_jax.model.linear import LowRank
from lpo_jax.sharding import constrain, spec

X = TypeVar("X")

CHUNK = 512
"""Scored tokens of a device whose logits exist at the same time, of both models."""

NEVER = -1e30
"""The log of no probability, to compute with: -inf would leave NaN in 0 * (log q - log p)."""


class Output(NamedTuple):
    """What a model makes of a batch, in front of its logits."""

    hidden: jax.Array  # [B, T, D]
    head: jax.Array  # [D, V]
    bias: jax.Array | None  # [V]
    low_rank: LowRank | None = None  # what the head's adapter adds to the logits: states are [B, T, R]


def divergence(
    trained: Output, frozen: Output | TeacherTop, batch: TreeBatch, direction: str, vocab: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of every scored token, and the divergence of the two models' distributions there; padding has values too.

    - ``reverse``: KL(trained || frozen) = sum_v q (log q - log p), q the trained model's distribution and p the frozen one's.
    - ``forward``: KL(frozen || trained) = sum_v p (log p - log q), 0 where they are equal. The "fkl" that CoSec+ published is the
      cross-entropy -sum_v p log q: larger by p's entropy, and of the same gradient.

    With a teacher's K most probable tokens all others are one event, of the mass that remains; with K = V nothing does.

    Args:
      vocab: both vocabularies are cut to so many ids in front of the softmax. None: neither is cut.

    Returns:
      [B, N] twice, float32 or wider. No gradient reaches `frozen`.
    """
    states, head = _cut(trained, batch, vocab)
    others, *frozen_head = jax.lax.stop_gradient((frozen,) if isinstance(frozen, TeacherTop) else _cut(frozen, batch, vocab))

    @jax.checkpoint
    def of_chunk(heads: Any, part: Any) -> tuple[jax.Array, jax.Array]:
        states, others, target = part
        log_q = _log_softmax(states, heads[0])
        logp = jnp.take_along_axis(log_q, target[:, None], axis=1)[:, 0]
        log_p, log_q = _events(others, log_q) if isinstance(others, TeacherTop) else (_log_softmax(others, heads[1]), log_q)
        over, under = (log_q, log_p) if direction == "reverse" else (log_p, log_q)
        return logp, (jnp.exp(over) * (over - under)).sum(-1)

    summed = jax.tree.map(lambda x: x.astype(wide(x)), head)  # so wide the gradient is added up over the chunks
    return _by_chunks(of_chunk, (summed, *frozen_head), (states, others, batch.target))


def top(model: Output, batch: TreeBatch, k: int, vocab: int | None = None) -> TeacherTop:
    """The `k` most probable tokens in the place of every scored one, for `divergence` to take as `frozen`; padding has values too."""

    def of_chunk(head: Head, states: States) -> TeacherTop:
        log_p = _log_softmax(states, head)
        logps, ids = jax.lax.top_k(log_p, k)
        return TeacherTop(ids, logps, _rest(log_p, ids))

    states, head = _cut(model, batch, vocab)
    return _by_chunks(of_chunk, head, states)


def _cut(model: Output, batch: TreeBatch, vocab: int | None) -> tuple[States, Head]:
    """The states at the scored positions, [B, N, ...], and the head's first columns, as many as `tensor` divides."""
    size = model.head.shape[1] if vocab is None else vocab
    padding = -size % dict(jax.sharding.get_abstract_mesh().shape).get("tensor", 1)
    bias = None if model.bias is None else model.bias[:size]
    if padding:
        bias = jnp.zeros(size, jnp.float32) if bias is None else bias.astype(jnp.promote_types(bias.dtype, jnp.float32))
        bias = jnp.pad(bias, (0, padding), constant_values=NEVER)

    def columns(matrix: jax.Array) -> jax.Array:
        return constrain(jnp.pad(matrix[:, :size], ((0, 0), (0, padding))), None, "vocab")

    inner, outer = (None, None) if model.low_rank is None else model.low_rank
    states = jax.tree.map(lambda x: jnp.take_along_axis(x, batch.source[..., None], axis=1), States(model.hidden, inner))
    return states, Head(columns(model.head), None if outer is None else columns(outer), bias)


def _by_chunks(f: Callable[[Any, Any], X], heads: Any, tokens: Any) -> X:
    """``f(heads, part)`` for parts of the scored tokens, as one array again: leaves [B, N, ...] -> [C, ...] -> f -> [C, ...] -> [B, N, ...]."""

    def local(heads: Any, tokens: Any) -> X:
        B, N = jax.tree.leaves(tokens)[0].shape[:2]
        size = max(1, min(CHUNK // B, N))

        def split(x: jax.Array) -> jax.Array:
            x = jnp.pad(x, [(0, 0), (0, -N % size), *[(0, 0)] * (x.ndim - 2)])
            return jnp.moveaxis(x.reshape(B, -1, size, *x.shape[2:]), 1, 0).reshape(-1, B * size, *x.shape[2:])

        def join(x: jax.Array) -> jax.Array:
            return jnp.moveaxis(x.reshape(-1, B, size, *x.shape[2:]), 0, 1).reshape(B, -1, *x.shape[2:])[:, :N]

        return jax.tree.map(join, jax.lax.scan(lambda _, part: (None, f(heads, part)), None, jax.tree.map(split, tokens))[1])

    mesh = jax.sharding.get_abstract_mesh()
    axes = None if mesh.empty else spec(("batch",), jax.tree.leaves(tokens)[0].shape[:1], dict(mesh.shape))[0]
    if axes is None:  # every device has all rows
        return local(heads, tokens)
    rows, whole = PartitionSpec(axes), PartitionSpec()
    return jax.shard_map(local, in_specs=(whole, rows), out_specs=rows, axis_names={"data", "fsdp", "expert"}, check_vma=False)(
        heads, tokens
    )


def _log_softmax(states: States, head: Head) -> jax.Array:
    """[C, V] in float32 or wider; the products are taken of what the states' dtype holds."""
    matrix, outer = (None if x is None else x.astype(states.hidden.dtype) for x in (head.matrix, head.low_rank))
    return jax.nn.log_softmax(logits(states, Head(matrix, outer, head.bias)))


def _events(teacher: TeacherTop, log_q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Teacher and student as distributions over the same events: the teacher's K tokens, and all others."""
    ours = jnp.take_along_axis(log_q, teacher.ids, axis=1), _rest(log_q, teacher.ids)[:, None]
    return jnp.concatenate([teacher.logps, teacher.rest[:, None]], axis=1), jnp.concatenate(ours, axis=1)


def _rest(log_p: jax.Array, ids: jax.Array) -> jax.Array:
    """[C, V], [C, K] -> the log of what all tokens but `ids` hold, [C]."""
    kept = jnp.zeros(log_p.shape, bool).at[jnp.arange(len(ids))[:, None], ids].set(True)
    return jax.nn.logsumexp(jnp.where(kept, NEVER, log_p), axis=1)
