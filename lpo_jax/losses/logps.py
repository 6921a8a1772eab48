"""Log-probabilities of the scored tokens, without ever holding [tokens, V] logits.

The head is applied to scored positions only, a chunk of them at a time (`lpo_jax.losses.chunks`). There are two ways to a gradient:

- Where the loss is linear in a log-probability (SFT, LPO's imitation term), its gradient needs no more than the logits that the forward pass
  has at hand. So the forward pass computes it at once, up to one factor, and the backward pass multiplies it by that factor.
- Of the other tokens, few in LPO, the forward pass keeps one number, the log of their softmax's sum. The backward pass computes their logits
  again.

What isn't differentiated, as the head of a LoRA model, gets no gradient: none is computed, and none takes memory.

On a mesh the vocabulary is cut, see `lpo_jax.losses.layout`.

Dims: B rows, T tokens, N scored tokens in a row, D model, R rank, V vocabulary, C tokens in a chunk, those gathered included.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from lpo_jax.batch import TreeBatch
from lpo_jax.losses.chunks import Chunks, Head, Scored, States, logits, wide
from lpo_jax.losses.layout import Layout
from lpo_jax.model.attention.mask import platform
from lpo_jax.model.linear import LowRank

CHUNK = 1024
"""Scored tokens whose logits exist at the same time, of one device; up to 4 times as many where several share a vocabulary."""

FROZEN_CHUNK = 256
"""The same of a frozen head on CPUs. They multiply small matrices nearly as fast as large ones, and the last chunk has less room left empty. (A
trained head's gradient is added up once a chunk, which takes as long for a small one.)"""

FEW = 8
"""One in so many scored tokens is a changed one, or fewer (real pairs: one in 11)."""


def token_logps(
    hidden: jax.Array,
    head: jax.Array,
    batch: TreeBatch,
    bias: jax.Array | None = None,
    linear: jax.Array | None = None,
    low_rank: LowRank | None = None,
) -> jax.Array:
    """Log-probability of every scored token; 0 at padding.

    Args:
      hidden: [B, T, D].
      head: [D, V].
      bias: [V], of the head, or None.
      linear: [B, N], an objective's claim (`lpo_jax.objectives.base.Objective.linear`), or None. It promises: wherever this isn't 0, the gradient
        of the caller's loss by the log-probability is this times one number, the same for all tokens. For a mean over 50 tokens `linear` may
        be -1 at each of them, and the number is 1 / 50.
      low_rank: what the head's adapter adds to the logits, or None.

    Returns:
      [B, N] float32 or wider.
    """
    source, target, real = (jnp.asarray(x) for x in (batch.source, batch.target, batch.pair >= 0))
    states, outer = (None, None) if low_rank is None else low_rank
    padding = -head.shape[1] % Layout(hidden).parts  # columns that make the vocabulary divisible
    if padding:
        bias = jnp.zeros(head.shape[1], head.dtype) if bias is None else bias
        head, outer = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, padding))), (head, outer))
        bias = jnp.pad(bias, (0, padding), constant_values=-jnp.inf)
    return _token_logps(States(hidden, states), Head(head, outer, bias), Scored(source, target, real, linear))


class _Gradient(NamedTuple):
    """The gradient of the loss, as far as it is known. Of the head each replica has its own part of the sum."""

    states: Any  # States, [B * T, ...]
    head: Any  # Head, [replicas, ...]; None for what isn't differentiated


@flax.struct.dataclass
class _Trained:
    """Which parts of the head are differentiated."""

    matrix: bool = flax.struct.field(pytree_node=False)
    low_rank: bool = flax.struct.field(pytree_node=False)
    bias: bool = flax.struct.field(pytree_node=False)

    def of(self, head: Head) -> Head:
        """None in the place of every other part."""
        return Head(*(x if trained else None for x, trained in zip(head, (self.matrix, self.low_rank, self.bias), strict=True)))


@jax.custom_vjp
def _token_logps(states: States, head: Head, tokens: Scored) -> jax.Array:
    layout = Layout(states.hidden)

    def local(states: States, head: Head, tokens: Scored) -> jax.Array:
        return _values(Chunks(states, tokens, tokens.real, CHUNK, layout), head)[0]

    return layout.shard(local, (layout.rows, _specs(layout, head), layout.rows), layout.rows)(states, head, tokens)


def _forward(*inputs: Any) -> tuple[jax.Array, Any]:
    """Of (states, head, tokens), each array with whether it is differentiated."""
    states, head, tokens = jax.tree.map(lambda x: x.value, inputs)
    trained = _Trained(*(x is not None and x.perturbed for x in inputs[1]))
    layout, rows = Layout(states.hidden), Layout(states.hidden).rows

    def local(states: States, head: Head, tokens: Scored) -> tuple[jax.Array, jax.Array, Any]:
        logps, lse = _values(_rest(states, tokens, layout, trained), head)
        if tokens.linear is None:
            return logps, lse, None
        chunks = Chunks(states, tokens, tokens.linear != 0, _most(trained), layout)
        weights = chunks.sorted(tokens.linear)

        def step(at: jax.Array, carry: tuple[jax.Array, _Gradient]) -> tuple[jax.Array, _Gradient]:
            here, target = jax.tree.map(layout.gather, (chunks.states(at), chunks.target(at)))
            found = logits(here, head)
            top, exp, total = layout.softmax(found)
            logp = layout.at_target(found, target) - top - jnp.log(total)
            weight = layout.gather(chunks.slice(weights, at))
            return chunks.write(carry[0], layout.own(logp), at), _add(carry[1], chunks, at, here, target, head, exp, total, weight)

        linear_logps, gradient = chunks.loop(step, (jnp.zeros(chunks.total, chunks.wide), _zeros(states, trained.of(head))))
        return logps + chunks.unsorted(linear_logps), lse, gradient

    gradient = None if tokens.linear is None else _Gradient(rows, _specs(layout, trained.of(head), parts=True))
    logps, lse, gradient = layout.shard(local, (rows, _specs(layout, head), rows), (rows, rows, gradient))(states, head, tokens)
    return logps, (states, head, tokens, lse, trained, gradient)


def _backward(residuals: Any, dlogps: jax.Array) -> tuple[States, Head, None]:
    states, head, tokens, lse, trained, gradient = residuals
    layout, rows = Layout(states.hidden), Layout(states.hidden).rows

    def local(
        states: States, head: Head, tokens: Scored, lse: jax.Array, dlogps: jax.Array, known: _Gradient | None
    ) -> tuple[States, Head]:
        chunks = _rest(states, tokens, layout, trained)
        # Beyond the chunks' tokens: weight 0, and exp(logits - inf) = 0 beside it.
        norms, weights = chunks.sorted(lse, beyond=jnp.inf), chunks.sorted(dlogps)

        def step(at: jax.Array, gradient: _Gradient) -> _Gradient:
            here = jax.tree.map(layout.gather, chunks.states(at))
            target, norm, weight = (layout.gather(x) for x in (chunks.target(at), chunks.slice(norms, at), chunks.slice(weights, at)))
            probability = jnp.exp(logits(here, head) - norm[:, None])
            return _add(gradient, chunks, at, here, target, head, probability, jnp.ones_like(weight), weight)

        found = chunks.loop(step, _zeros(states, trained.of(head)) if known is None else known)
        dstates = jax.tree.map(lambda found, x: found.reshape(x.shape).astype(x.dtype), found.states, states)
        return dstates, jax.tree.map(lambda found, x: layout.over_replicas(found[0]).astype(x.dtype), found.head, trained.of(head))

    if gradient is not None:  # the one number that the caller has promised, by least squares over all tokens
        factor = (tokens.linear * dlogps).sum() / jnp.maximum(jnp.square(tokens.linear).sum(), jnp.finfo(dlogps.dtype).tiny)
        gradient = jax.tree.map(lambda x: factor * x, gradient)
    known = None if gradient is None else _Gradient(rows, _specs(layout, trained.of(head), parts=True))
    in_specs = (rows, _specs(layout, head), rows, rows, rows, known)
    found = layout.shard(local, in_specs, (rows, _specs(layout, trained.of(head))))(states, head, tokens, lse, dlogps, gradient)
    return *found, None


_token_logps.defvjp(_forward, _backward, symbolic_zeros=True)


def _values(chunks: Chunks, head: Head) -> tuple[jax.Array, jax.Array]:
    """(log-probabilities, logs of the softmax's sums) of the chunks' tokens, [B, N] each; 0 elsewhere."""
    layout = chunks.layout

    def step(at: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        found = logits(jax.tree.map(layout.gather, chunks.states(at)), head)
        top, _, total = layout.softmax(found)
        lse = top + jnp.log(total)
        logp = layout.at_target(found, layout.gather(chunks.target(at))) - lse
        return chunks.write(carry[0], layout.own(logp), at), chunks.write(carry[1], layout.own(lse), at)

    empty = jnp.zeros(chunks.total, chunks.wide)
    logps, lse = chunks.loop(step, (empty, empty))
    return chunks.unsorted(logps), chunks.unsorted(lse)


def _add(
    gradient: _Gradient,
    chunks: Chunks,
    at: jax.Array,
    states: States,
    target: jax.Array,
    head: Head,
    exp: jax.Array,
    total: jax.Array,
    weight: jax.Array,
) -> _Gradient:
    """Add the gradient of `weight` [C] times the chunk's log-probabilities, whose softmax is `exp` [C, V] / `total` [C].

    d logp / d logits is 1 in the target's column, minus the softmax. A token's `weight` and `total` are multiplied into its D hidden states,
    which is less work than into its V logits.
    """
    layout, row = chunks.layout, chunks.row(at)
    dlogits = jnp.where(layout.columns(exp) == target[:, None], total[:, None], 0) - exp
    scale, dlogits = (weight / total)[:, None], dlogits.astype(states.hidden.dtype)
    einsum = partial(jnp.einsum, preferred_element_type=chunks.wide)

    def by_states(known: jax.Array, matrix: jax.Array) -> jax.Array:
        return known.at[row].add(layout.own_sum(scale * einsum("CV,DV->CD", dlogits, matrix)))

    def by_matrix(known: jax.Array, x: jax.Array) -> jax.Array:
        return known + einsum("CV,CD->DV", dlogits, (scale * x).astype(x.dtype))

    hidden, inner = gradient.states
    matrix, outer, bias = gradient.head
    return _Gradient(
        States(by_states(hidden, head.matrix), None if inner is None else by_states(inner, head.low_rank)),
        Head(
            None if matrix is None else by_matrix(matrix, states.hidden),
            None if outer is None else by_matrix(outer, states.low_rank),
            None if bias is None else bias + einsum("CV,CR->RV", dlogits, scale),
        ),
    )


def _specs(layout: Layout, head: Head, parts: bool = False) -> Head:
    """How a head lies on the mesh, or with `parts` each replica's part of its gradient."""
    matrix, vector = (layout.head_parts, layout.vocab_parts) if parts else (layout.head, layout.vocab)
    return Head(*(None if x is None else spec for x, spec in zip(head, (matrix, matrix, vector), strict=True)))


def _zeros(states: States, head: Head) -> _Gradient:
    """No gradient yet of these arrays."""
    dtype = wide(states.hidden)
    return _Gradient(
        jax.tree.map(lambda x: jnp.zeros((x.size // x.shape[-1], x.shape[-1]), dtype), states),
        jax.tree.map(lambda x: jnp.zeros((1, *x.shape), dtype), head),
    )


def _rest(states: States, tokens: Scored, layout: Layout, trained: _Trained) -> Chunks:
    """The tokens in whose log-probability the loss isn't linear. Beside linear ones they are few, so their chunks are small."""
    if tokens.linear is None:
        return Chunks(states, tokens, tokens.real, _most(trained), layout)
    return Chunks(states, tokens, tokens.real & (tokens.linear == 0), -(-_most(trained) // 4), layout, FEW)


def _most(trained: _Trained) -> int:
    """How many scored tokens a chunk of a training step has at most."""
    return CHUNK if trained.matrix or platform() != "cpu" else min(CHUNK, FROZEN_CHUNK)
