"""Log-probabilities of the scored tokens, without ever holding [tokens, V] logits.

The head is applied to scored positions only, a chunk of them at a time (`lpo_jax.losses.chunks`). There are two ways to a gradient:

- Where the loss is linear in a log-probability (SFT, LPO's imitation term), its gradient needs no more than the logits that the forward pass
  has at hand. So the forward pass computes it at once, up to one factor, and the backward pass multiplies it by that factor.
- Of the other tokens, few in LPO, the forward pass keeps one number, the log of their softmax's sum. The backward pass computes their logits
  again.

On a mesh the vocabulary is cut, see `lpo_jax.losses.layout`.

Dims: B rows, T tokens, N scored tokens in a row, D model, V vocabulary, C tokens in a chunk, those gathered included.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lpo_jax.batch import TreeBatch
from lpo_jax.losses.chunks import Chunks, Scored, wide
from lpo_jax.losses.layout import Layout

CHUNK = 1024
"""Scored tokens whose logits exist at the same time, of one device; up to 4 times as many where several share a vocabulary."""

FEW = 8
"""One in so many scored tokens is a changed one, or fewer (real pairs: one in 11)."""


def token_logps(
    hidden: jax.Array, head: jax.Array, batch: TreeBatch, bias: jax.Array | None = None, linear: jax.Array | None = None
) -> jax.Array:
    """Log-probability of every scored token; 0 at padding.

    Args:
      hidden: [B, T, D].
      head: [D, V].
      bias: [V], of the head, or None.
      linear: [B, N], an objective's claim (`lpo_jax.objectives.base.Objective.linear`), or None. It promises: wherever this isn't 0, the gradient
        of the caller's loss by the log-probability is this times one number, the same for all tokens. For a mean over 50 tokens `linear` may
        be -1 at each of them, and the number is 1 / 50.

    Returns:
      [B, N] float32 or wider.
    """
    source, target, real = (jnp.asarray(x) for x in (batch.source, batch.target, batch.pair >= 0))
    layout = Layout(hidden)
    padding = -head.shape[1] % layout.parts  # columns that make the vocabulary divisible
    if padding:
        bias = jnp.zeros(head.shape[1], head.dtype) if bias is None else bias
        head, bias = jnp.pad(head, ((0, 0), (0, padding))), jnp.pad(bias, (0, padding), constant_values=-jnp.inf)
    return _token_logps(hidden, head, bias, Scored(source, target, real, linear))


class _Gradient(NamedTuple):
    """The gradient of the loss, as far as it is known. Of the head and its bias each replica has its own part of the sum."""

    hidden: Any  # [B * T, D]
    head: Any  # [replicas, D, V]
    bias: Any  # [replicas, V] or None


@jax.custom_vjp
def _token_logps(hidden: jax.Array, head: jax.Array, bias: jax.Array | None, tokens: Scored) -> jax.Array:
    layout = Layout(hidden)

    def local(hidden: jax.Array, head: jax.Array, bias: jax.Array | None, tokens: Scored) -> jax.Array:
        return _values(Chunks(hidden, tokens, tokens.real, CHUNK, layout), head, bias)[0]

    return layout.shard(local, (layout.rows, layout.head, layout.vocab, layout.rows), layout.rows)(hidden, head, bias, tokens)


def _forward(hidden: jax.Array, head: jax.Array, bias: jax.Array | None, tokens: Scored) -> tuple[jax.Array, Any]:
    layout = Layout(hidden)

    def local(hidden: jax.Array, head: jax.Array, bias: jax.Array | None, tokens: Scored) -> tuple[jax.Array, jax.Array, Any]:
        logps, lse = _values(_rest(hidden, tokens, layout), head, bias)
        if tokens.linear is None:
            return logps, lse, None
        chunks = Chunks(hidden, tokens, tokens.linear != 0, CHUNK, layout)
        weights = chunks.sorted(tokens.linear)

        def step(at: jax.Array, carry: tuple[jax.Array, _Gradient]) -> tuple[jax.Array, _Gradient]:
            states, target = layout.gather(chunks.states(at)), layout.gather(chunks.target(at))
            logits = _logits(states, head, bias)
            top, exp, total = layout.softmax(logits)
            logp = layout.at_target(logits, target) - top - jnp.log(total)
            weight = layout.gather(chunks.slice(weights, at))
            return chunks.write(carry[0], layout.own(logp), at), _add(carry[1], chunks, at, states, target, head, exp, total, weight)

        linear_logps, gradient = chunks.loop(step, (jnp.zeros(chunks.total, chunks.wide), _zeros(hidden, head, bias)))
        return logps + chunks.unsorted(linear_logps), lse, gradient

    rows, gradient = layout.rows, None if tokens.linear is None else _gradient_specs(layout, bias)
    logps, lse, gradient = layout.shard(local, (rows, layout.head, layout.vocab, rows), (rows, rows, gradient))(hidden, head, bias, tokens)
    return logps, (hidden, head, bias, tokens, lse, gradient)


def _backward(residuals: Any, dlogps: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None, None]:
    hidden, head, bias, tokens, lse, gradient = residuals
    layout = Layout(hidden)

    def local(
        hidden: jax.Array,
        head: jax.Array,
        bias: jax.Array | None,
        tokens: Scored,
        lse: jax.Array,
        dlogps: jax.Array,
        known: _Gradient | None,
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        chunks = _rest(hidden, tokens, layout)
        # Beyond the chunks' tokens: weight 0, and exp(logits - inf) = 0 beside it.
        norms, weights = chunks.sorted(lse, beyond=jnp.inf), chunks.sorted(dlogps)

        def step(at: jax.Array, gradient: _Gradient) -> _Gradient:
            states = layout.gather(chunks.states(at))
            target, norm, weight = (layout.gather(x) for x in (chunks.target(at), chunks.slice(norms, at), chunks.slice(weights, at)))
            probability = jnp.exp(_logits(states, head, bias) - norm[:, None])
            return _add(gradient, chunks, at, states, target, head, probability, jnp.ones_like(weight), weight)

        found = chunks.loop(step, _zeros(hidden, head, bias) if known is None else known)
        dhead = layout.over_replicas(found.head[0]).astype(head.dtype)
        dbias = None if bias is None else layout.over_replicas(found.bias[0]).astype(bias.dtype)
        return found.hidden.reshape(hidden.shape).astype(hidden.dtype), dhead, dbias

    if gradient is not None:  # the one number that the caller has promised, by least squares over all tokens
        factor = (tokens.linear * dlogps).sum() / jnp.maximum(jnp.square(tokens.linear).sum(), jnp.finfo(dlogps.dtype).tiny)
        gradient = jax.tree.map(lambda x: factor * x, gradient)
    rows, vocab = layout.rows, layout.vocab
    in_specs = (rows, layout.head, vocab, rows, rows, rows, None if gradient is None else _gradient_specs(layout, bias))
    grads = layout.shard(local, in_specs, (rows, layout.head, vocab))
    return *grads(hidden, head, bias, tokens, lse, dlogps, gradient), None


_token_logps.defvjp(_forward, _backward)


def _values(chunks: Chunks, head: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """(log-probabilities, logs of the softmax's sums) of the chunks' tokens, [B, N] each; 0 elsewhere."""
    layout = chunks.layout

    def step(at: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits = _logits(layout.gather(chunks.states(at)), head, bias)
        top, _, total = layout.softmax(logits)
        lse = top + jnp.log(total)
        logp = layout.at_target(logits, layout.gather(chunks.target(at))) - lse
        return chunks.write(carry[0], layout.own(logp), at), chunks.write(carry[1], layout.own(lse), at)

    empty = jnp.zeros(chunks.total, chunks.wide)
    logps, lse = chunks.loop(step, (empty, empty))
    return chunks.unsorted(logps), chunks.unsorted(lse)


def _add(
    gradient: _Gradient,
    chunks: Chunks,
    at: jax.Array,
    states: jax.Array,
    target: jax.Array,
    head: jax.Array,
    exp: jax.Array,
    total: jax.Array,
    weight: jax.Array,
) -> _Gradient:
    """Add the gradient of `weight` [C] times the chunk's log-probabilities, whose softmax is `exp` [C, V] / `total` [C].

    d logp / d logits is 1 in the target's column, minus the softmax. A token's `weight` and `total` are multiplied into its D hidden states,
    which is less work than into its V logits.
    """
    layout, wide = chunks.layout, gradient.hidden.dtype
    dlogits = jnp.where(layout.columns(exp) == target[:, None], total[:, None], 0) - exp
    scale, dlogits = (weight / total)[:, None], dlogits.astype(states.dtype)
    dstates = layout.own_sum(scale * jnp.einsum("CV,DV->CD", dlogits, head, preferred_element_type=wide))
    dhead = jnp.einsum("CV,CD->DV", dlogits, (scale * states).astype(states.dtype), preferred_element_type=wide)
    bias = None if gradient.bias is None else gradient.bias + jnp.einsum("CV,CR->RV", dlogits, scale, preferred_element_type=wide)
    return _Gradient(gradient.hidden.at[chunks.row(at)].add(dstates), gradient.head + dhead, bias)


def _gradient_specs(layout: Layout, bias: jax.Array | None) -> _Gradient:
    """How a `_Gradient` lies on the mesh."""
    return _Gradient(layout.rows, layout.head_parts, None if bias is None else layout.vocab_parts)


def _zeros(hidden: jax.Array, head: jax.Array, bias: jax.Array | None) -> _Gradient:
    D, V = head.shape
    shapes = (hidden.size // D, D), (1, D, V), None if bias is None else (1, V)
    return _Gradient(*(None if shape is None else jnp.zeros(shape, wide(hidden)) for shape in shapes))


def _rest(hidden: jax.Array, tokens: Scored, layout: Layout) -> Chunks:
    """The tokens in whose log-probability the loss isn't linear. Beside linear ones they are few, so their chunks are small."""
    if tokens.linear is None:
        return Chunks(hidden, tokens, tokens.real, CHUNK, layout)
    return Chunks(hidden, tokens, tokens.real & (tokens.linear == 0), -(-CHUNK // 4), layout, FEW)


def _logits(states: jax.Array, head: jax.Array, bias: jax.Array | None) -> jax.Array:
    """[C, V]"""
    logits = jnp.einsum("CD,DV->CV", states, head, preferred_element_type=wide(states))
    return logits if bias is None else logits + bias.astype(logits.dtype)
