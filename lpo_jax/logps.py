"""Log-probabilities of the scored tokens, without ever holding [tokens, V] logits.

The head is applied to scored positions only, a chunk of them at a time, and once more in the backward pass, which keeps of the forward pass
one number a token: the log of its softmax's sum. Rows are padded to the scored tokens of the fullest; the padding is left out.

On a mesh the *vocabulary* is cut along `tensor` and `fsdp`, whatever the head's own layout: a chunk's hidden states are gathered along `fsdp`
and each device computes all of them against its own columns. So no device ever holds the whole head or its gradient.

Dims: B rows, T tokens, N scored tokens in a row, D model, V vocabulary, C tokens in a chunk, those gathered included.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lpo_jax.batch import TreeBatch
from lpo_jax.sharding import spec

CHUNK = 1024
"""Scored tokens whose logits exist at the same time, of one device; up to 4 times as many where several share a vocabulary."""


def token_logps(hidden: jax.Array, head: jax.Array, batch: TreeBatch, bias: jax.Array | None = None) -> jax.Array:
    """Log-probability of every scored token; 0 at padding.

    Args:
      hidden: [B, T, D].
      head: [D, V].
      bias: [V], of the head, or None.

    Returns:
      [B, N] float32 or wider.
    """
    source, target, real = (jnp.asarray(x) for x in (batch.source, batch.target, batch.pair >= 0))
    layout = _Layout(hidden)
    padding = -head.shape[1] % layout.parts  # columns that make the vocabulary divisible
    if padding:
        bias = jnp.zeros(head.shape[1], head.dtype) if bias is None else bias
        head, bias = jnp.pad(head, ((0, 0), (0, padding))), jnp.pad(bias, (0, padding), constant_values=-jnp.inf)
    return _token_logps(hidden, head, bias, _Tokens(source, target, real))


class _Tokens(NamedTuple):
    """The scored tokens, [B, N] each."""

    source: Any
    target: Any
    real: Any  # not padding


@jax.custom_vjp
def _token_logps(hidden: jax.Array, head: jax.Array, bias: jax.Array | None, tokens: _Tokens) -> jax.Array:
    return _forward(hidden, head, bias, tokens)[0]


def _forward(hidden: jax.Array, head: jax.Array, bias: jax.Array | None, tokens: _Tokens) -> tuple[jax.Array, Any]:
    layout = _Layout(hidden)

    def local(hidden: jax.Array, head: jax.Array, bias: jax.Array | None, tokens: _Tokens) -> tuple[jax.Array, jax.Array]:
        chunks = _Chunks(hidden, tokens, layout)

        def step(at: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            logits = _logits(layout.gather(chunks.states(at)), head, bias)
            lse = layout.logsumexp(logits)
            column = layout.gather(chunks.target(at)) - layout.columns(logits)[0]
            mine = (column >= 0) & (column < logits.shape[-1])
            target = jnp.take_along_axis(logits, jnp.where(mine, column, 0)[:, None], axis=1)[:, 0]
            target = layout.over_vocabulary(jnp.where(mine, target, 0))
            return tuple(chunks.write(x, layout.own(y), at) for x, y in zip(carry, (target - lse, lse), strict=True))

        empty = jnp.zeros(chunks.total, _wide(hidden))
        logps, lse = chunks.loop(step, (empty, empty))
        return jnp.where(tokens.real, chunks.unsorted(logps), 0), chunks.unsorted(lse)

    rows = layout.rows
    logps, lse = layout.shard(local, (rows, layout.head, layout.vocab, rows), (rows, rows))(hidden, head, bias, tokens)
    return logps, (hidden, head, bias, tokens, lse)


def _backward(residuals: Any, dlogps: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None, None]:
    hidden, head, bias, tokens, lse = residuals
    layout = _Layout(hidden)

    def local(
        hidden: jax.Array, head: jax.Array, bias: jax.Array | None, tokens: _Tokens, lse: jax.Array, dlogps: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        chunks, wide = _Chunks(hidden, tokens, layout), _wide(hidden)
        # Beyond the real tokens: weight 0, and exp(logits - inf) = 0 beside it.
        lse, dlogps = chunks.sorted(lse, beyond=jnp.inf), chunks.sorted(dlogps)

        def step(at: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            dhidden, dhead, dbias = carry
            states = layout.gather(chunks.states(at))
            target, norm, weight = (layout.gather(x)[:, None] for x in (chunks.target(at), chunks.slice(lse, at), chunks.slice(dlogps, at)))
            # d logp / d logits = [the target's column] - softmax
            logits = _logits(states, head, bias)
            dlogits = weight * ((layout.columns(logits) == target) - jnp.exp(logits - norm))
            if bias is not None:
                dbias += dlogits.sum(0)
            dlogits = dlogits.astype(hidden.dtype)
            dhead += jnp.einsum("CD,CV->DV", states, dlogits, preferred_element_type=wide)
            dstates = layout.own_sum(jnp.einsum("CV,DV->CD", dlogits, head, preferred_element_type=wide))
            return dhidden.at[chunks.row(at)].add(dstates), dhead, dbias

        zeros = jnp.zeros((hidden.shape[0] * hidden.shape[1], hidden.shape[2]), wide), jnp.zeros(head.shape, wide)
        dhidden, dhead, dbias = chunks.loop(step, (*zeros, None if bias is None else jnp.zeros(bias.shape, wide)))
        dbias = None if bias is None else layout.over_replicas(dbias).astype(bias.dtype)
        return dhidden.reshape(hidden.shape).astype(hidden.dtype), layout.over_replicas(dhead).astype(head.dtype), dbias

    rows, vocab = layout.rows, layout.vocab
    grads = layout.shard(local, (rows, layout.head, vocab, rows, rows, rows), (rows, layout.head, vocab))
    return *grads(hidden, head, bias, tokens, lse, dlogps), None


_token_logps.defvjp(_forward, _backward)


class _Chunks:
    """A device's scored tokens in a line, the real ones in front, and a loop over as many chunks as they fill."""

    def __init__(self, hidden: jax.Array, tokens: _Tokens, layout: "_Layout"):
        B, T, D = hidden.shape
        rows = jnp.arange(B)[:, None] * T + tokens.source
        self._layout, self._shape = layout, rows.shape
        self.size = min(max(min(4, layout.sharers) * CHUNK // layout.sharers, 1), rows.size)
        self.total = -(-rows.size // self.size) * self.size
        order = jnp.argsort(~tokens.real.reshape(-1), stable=True)
        self._rank = jnp.argsort(order)
        self._order = jnp.pad(order, (0, self.total - rows.size))
        self._count = tokens.real.sum()
        self._hidden = hidden.reshape(-1, D)
        self._rows, self._targets = self.sorted(rows), self.sorted(tokens.target)

    def sorted(self, x: jax.Array, beyond: float = 0) -> jax.Array:
        """[B, N] -> [total], with `beyond` behind the real tokens."""
        return jnp.where(jnp.arange(self.total) < self._count, x.reshape(-1)[self._order], beyond)

    def unsorted(self, x: jax.Array) -> jax.Array:
        """[total] -> [B, N]"""
        return x[self._rank].reshape(self._shape)

    def slice(self, x: jax.Array, at: jax.Array) -> jax.Array:
        """Chunk `at` of [total]: [size]."""
        return jax.lax.dynamic_slice_in_dim(x, at * self.size, self.size)

    def write(self, x: jax.Array, part: jax.Array, at: jax.Array) -> jax.Array:
        """The inverse of `slice`."""
        return jax.lax.dynamic_update_slice_in_dim(x, part, at * self.size, 0)

    def row(self, at: jax.Array) -> jax.Array:
        """Where the hidden states of a chunk stand in [B * T]."""
        return self.slice(self._rows, at)

    def target(self, at: jax.Array) -> jax.Array:
        return self.slice(self._targets, at)

    def states(self, at: jax.Array) -> jax.Array:
        """[size, D]"""
        return self._hidden[self.row(at)]

    def loop(self, step: Callable, carry: Any) -> Any:
        """`fori_loop` over the chunks that hold real tokens; the number of all chunks stands in the condition for who counts FLOPs."""
        all_chunks, filled = self.total // self.size, self._layout.most(-(-self._count // self.size))
        go_on = lambda state: (state[0] < all_chunks) & (state[0] < filled)  # noqa: E731
        return jax.lax.while_loop(go_on, lambda state: (state[0] + 1, step(*state)), (0, carry))[1]


class _Layout:
    """How rows and vocabulary lie on the mesh; without one, everything is here."""

    def __init__(self, hidden: jax.Array):
        self._mesh = jax.sharding.get_abstract_mesh()
        shape = dict(self._mesh.shape)
        rows = None if self._mesh.empty else spec(("batch",), hidden.shape[:1], shape)[0]
        row_axes = rows if isinstance(rows, tuple) else (rows,)
        # The columns' order: the devices of a tensor-parallel group hold neighbouring fsdp parts.
        self._vocab_axes = tuple(axis for axis in ("tensor", "fsdp") if shape.get(axis, 1) > 1)
        self._gathers = "fsdp" in self._vocab_axes and "fsdp" in row_axes
        self._sum_axes = tuple(axis for axis in row_axes if axis is not None and axis not in self._vocab_axes)
        self.parts = 1
        for axis in self._vocab_axes:
            self.parts *= shape[axis]
        self.sharers = shape["fsdp"] if self._gathers else 1  # devices whose tokens are gathered
        self.rows, self.vocab = PartitionSpec(rows), PartitionSpec(self._vocab_axes or None)
        self.head = PartitionSpec(None, self._vocab_axes or None)

    def shard(self, f: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """`f` run by each device on its part."""
        return f if self._mesh.empty else jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def gather(self, x: jax.Array) -> jax.Array:
        """What all sharers hold of a chunk: [size, ...] -> [C, ...]."""
        return jax.lax.all_gather(x, "fsdp", tiled=True) if self._gathers else x

    def own(self, x: jax.Array) -> jax.Array:
        """This device's tokens of a chunk: [C] -> [size]."""
        if not self._gathers:
            return x
        size = x.shape[0] // self.sharers
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index("fsdp") * size, size)

    def own_sum(self, x: jax.Array) -> jax.Array:
        """The sum over the vocabulary's parts, of this device's tokens: [C, D] -> [size, D]."""
        if self._gathers:
            x = jax.lax.psum_scatter(x, "fsdp", tiled=True)
        others = tuple(axis for axis in self._vocab_axes if axis != "fsdp" or not self._gathers)
        return jax.lax.psum(x, others) if others else x

    def columns(self, logits: jax.Array) -> jax.Array:
        """Which ids this device's columns stand for."""
        first = jax.lax.axis_index(self._vocab_axes) * logits.shape[-1] if self._vocab_axes else 0
        return first + jnp.arange(logits.shape[-1])

    def logsumexp(self, logits: jax.Array) -> jax.Array:
        """Over the whole vocabulary: [C, part of V] -> [C]."""
        top = logits.max(-1)
        if self._vocab_axes:
            top = jax.lax.pmax(top, self._vocab_axes)
        return top + jnp.log(self.over_vocabulary(jnp.exp(logits - top[:, None]).sum(-1)))

    def over_vocabulary(self, x: jax.Array) -> jax.Array:
        """The sum over the parts of the vocabulary."""
        return jax.lax.psum(x, self._vocab_axes) if self._vocab_axes else x

    def over_replicas(self, x: jax.Array) -> jax.Array:
        """The sum over the devices that hold the same columns and other rows."""
        return jax.lax.psum(x, self._sum_axes) if self._sum_axes else x

    def most(self, count: jax.Array) -> jax.Array:
        """The largest count among the sharers, who must loop together."""
        return jax.lax.pmax(count, "fsdp") if self._gathers else count


def _logits(states: jax.Array, head: jax.Array, bias: jax.Array | None) -> jax.Array:
    """[C, V]"""
    logits = jnp.einsum("CD,DV->CV", states, head, preferred_element_type=_wide(states))
    return logits if bias is None else logits + bias.astype(logits.dtype)


def _wide(x: jax.Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)
