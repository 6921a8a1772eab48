"""Log-probabilities of the scored tokens, without ever holding [tokens, V] logits.

The head is applied to scored positions only, CHUNK of them at a time, and once more in the backward pass, which keeps of the forward pass
one number a token: the log of its softmax's sum. Rows are padded to the scored tokens of the fullest; the padding is left out.

Dims: B rows, T tokens, N scored tokens in a row, D model, V vocabulary, C tokens in a chunk.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lpo_jax.batch import TreeBatch
from lpo_jax.sharding import spec

CHUNK = 1024
"""Scored tokens of a device whose logits exist at the same time."""


def token_logps(hidden: jax.Array, head: jax.Array, batch: TreeBatch, bias: jax.Array | None = None) -> jax.Array:
    """Log-probability of every scored token; 0 at padding.

    On a mesh, each device computes its own rows over its own part of the vocabulary; the head is gathered along `fsdp` once a pass.

    Args:
      hidden: [B, T, D].
      head: [D, V].
      bias: [V], of the head, or None.

    Returns:
      [B, N] float32 or wider.
    """
    source, target, real = (jnp.asarray(x) for x in (batch.source, batch.target, batch.pair >= 0))
    return _token_logps(hidden, head, bias, source, target, real)


@jax.custom_vjp
def _token_logps(
    hidden: jax.Array, head: jax.Array, bias: jax.Array | None, source: jax.Array, target: jax.Array, real: jax.Array
) -> jax.Array:
    return _forward(hidden, head, bias, source, target, real)[0]


def _forward(
    hidden: jax.Array, head: jax.Array, bias: jax.Array | None, source: jax.Array, target: jax.Array, real: jax.Array
) -> tuple[jax.Array, Any]:
    layout = _Layout(hidden, head)
    rows, whole_head, bias_spec = layout.rows, layout.whole_head, layout.vocab

    def local(hidden: jax.Array, head: jax.Array, bias: jax.Array | None, tokens: "_Tokens") -> tuple[jax.Array, jax.Array]:
        chunks = _Chunks(hidden, tokens)

        def step(at: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            logits = _logits(chunks.states(at), head, bias)
            lse = layout.logsumexp(logits)
            found, column = layout.own_columns(chunks.target(at), logits.shape[-1])
            target = jnp.take_along_axis(logits, column[:, None], axis=1)[:, 0]
            target = layout.over_vocabulary(jnp.where(found, target, 0))
            return tuple(jax.lax.dynamic_update_slice(x, y, (at * chunks.size,)) for x, y in zip(carry, (target - lse, lse), strict=True))  # type: ignore[return-value]

        empty = jnp.zeros(chunks.total, _wide(hidden))
        logps, lse = chunks.loop(step, (empty, empty))
        return jnp.where(tokens.real, chunks.unsorted(logps, tokens), 0), chunks.unsorted(lse, tokens)

    tokens = _Tokens(source, target, real)
    in_specs = (rows, whole_head, bias_spec, _Tokens(rows, rows, rows))
    logps, lse = layout.shard(local, in_specs, (rows, rows))(hidden, head, bias, tokens)
    return logps, (hidden, head, bias, tokens, lse)


def _backward(residuals: Any, dlogps: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None, None, None, None]:
    hidden, head, bias, tokens, lse = residuals
    layout = _Layout(hidden, head)
    rows, whole_head, bias_spec = layout.rows, layout.whole_head, layout.vocab

    def local(
        hidden: jax.Array, head: jax.Array, bias: jax.Array | None, tokens: "_Tokens", lse: jax.Array, dlogps: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        chunks, wide = _Chunks(hidden, tokens), _wide(hidden)
        lse, dlogps = chunks.sorted(lse, beyond=jnp.inf), chunks.sorted(dlogps)

        def step(at: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            dhidden, dhead, dbias = carry
            states, weight = chunks.states(at), chunks.slice(dlogps, at)[:, None]
            logits = _logits(states, head, bias)
            # d logp / d logits = [the target's column] - softmax
            found, column = layout.own_columns(chunks.target(at), logits.shape[-1])
            hit = found[:, None] & (jnp.arange(logits.shape[-1]) == column[:, None])
            dlogits = weight * (hit - jnp.exp(logits - chunks.slice(lse, at)[:, None]))
            if bias is not None:
                dbias += dlogits.sum(0)
            dlogits = dlogits.astype(hidden.dtype)
            dhead += jnp.einsum("CD,CV->DV", states, dlogits, preferred_element_type=wide)
            dstates = jnp.einsum("CV,DV->CD", dlogits, head, preferred_element_type=wide)
            return dhidden.at[chunks.row(at)].add(dstates), dhead, dbias

        zeros = jnp.zeros((hidden.shape[0] * hidden.shape[1], hidden.shape[2]), wide), jnp.zeros(head.shape, wide)
        dhidden, dhead, dbias = chunks.loop(step, (*zeros, None if bias is None else jnp.zeros(bias.shape, wide)))
        dhidden = layout.over_vocabulary(dhidden).reshape(hidden.shape).astype(hidden.dtype)
        dbias = None if bias is None else layout.over_rows(dbias).astype(bias.dtype)
        return dhidden, layout.head_gradient(dhead).astype(head.dtype), dbias

    in_specs = (rows, whole_head, bias_spec, _Tokens(rows, rows, rows), rows, rows)
    grads = layout.shard(local, in_specs, (rows, layout.cut_head, bias_spec))(hidden, head, bias, tokens, lse, dlogps)
    return *grads, None, None, None


_token_logps.defvjp(_forward, _backward)


class _Tokens(NamedTuple):
    """The scored tokens, [B, N] each."""

    source: Any
    target: Any
    real: Any  # not padding


class _Chunks:
    """A device's scored tokens in a line, the real ones in front, and a loop over as many chunks as they fill."""

    def __init__(self, hidden: jax.Array, tokens: _Tokens):
        B, T, D = hidden.shape
        rows = jnp.arange(B)[:, None] * T + tokens.source
        self.size = min(CHUNK, rows.size)
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

    def unsorted(self, x: jax.Array, tokens: _Tokens) -> jax.Array:
        """[total] -> [B, N]"""
        return x[self._rank].reshape(tokens.source.shape)

    def slice(self, x: jax.Array, at: jax.Array) -> jax.Array:
        """Chunk `at` of [total]: [C]."""
        return jax.lax.dynamic_slice_in_dim(x, at * self.size, self.size)

    def row(self, at: jax.Array) -> jax.Array:
        """Where the hidden states of a chunk stand in [B * T]."""
        return self.slice(self._rows, at)

    def target(self, at: jax.Array) -> jax.Array:
        return self.slice(self._targets, at)

    def states(self, at: jax.Array) -> jax.Array:
        """[C, D]"""
        return self._hidden[self.row(at)]

    def loop(self, step: Callable, carry: Any) -> Any:
        """`fori_loop` over the chunks that hold real tokens; the number of all chunks stands in the condition for who counts FLOPs."""
        all_chunks, filled = self.total // self.size, -(-self._count // self.size)
        go_on = lambda state: (state[0] < all_chunks) & (state[0] < filled)  # noqa: E731
        return jax.lax.while_loop(go_on, lambda state: (state[0] + 1, step(*state)), (0, carry))[1]


class _Layout:
    """How rows and vocabulary lie on the mesh; without one, everything is here."""

    def __init__(self, hidden: jax.Array, head: jax.Array):
        self.mesh = jax.sharding.get_abstract_mesh()
        if self.mesh.empty:
            self._row_axes, self._vocab_axis, self._embed_axis = None, None, None
        else:
            shape = dict(self.mesh.shape)
            self._row_axes = spec(("batch",), hidden.shape[:1], shape)[0]
            self._embed_axis, self._vocab_axis = spec(("embed", "vocab"), head.shape, shape)
        self.rows, self.vocab = PartitionSpec(self._row_axes), PartitionSpec(self._vocab_axis)
        self.whole_head = PartitionSpec(None, self._vocab_axis)
        row_axes = self._row_axes if isinstance(self._row_axes, tuple) else (self._row_axes,)
        self._sum_axes = [axis for axis in row_axes if axis not in (None, self._embed_axis)]
        self._scatters = self._embed_axis is not None and self._embed_axis in row_axes
        self.cut_head = PartitionSpec(self._embed_axis, self._vocab_axis) if self._scatters else self.whole_head

    def shard(self, f: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """`f` run by each device on its part."""
        return f if self.mesh.empty else jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def logsumexp(self, logits: jax.Array) -> jax.Array:
        """Over the whole vocabulary: [C, part of V] -> [C]."""
        top = logits.max(-1)
        if self._vocab_axis is not None:
            top = jax.lax.pmax(top, self._vocab_axis)
        return top + jnp.log(self.over_vocabulary(jnp.exp(logits - top[:, None]).sum(-1)))

    def own_columns(self, target: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
        """Which targets stand in this device's part of the vocabulary, and in which of its columns (any, where not)."""
        column = target if self._vocab_axis is None else target - jax.lax.axis_index(self._vocab_axis) * width
        found = (column >= 0) & (column < width)
        return found, jnp.where(found, column, 0)

    def over_vocabulary(self, x: jax.Array) -> jax.Array:
        """The sum over the parts of the vocabulary."""
        return x if self._vocab_axis is None else jax.lax.psum(x, self._vocab_axis)

    def over_rows(self, x: jax.Array) -> jax.Array:
        """The sum over the devices that hold other rows."""
        return x if self._row_axes is None else jax.lax.psum(x, self._row_axes)

    def head_gradient(self, dhead: jax.Array) -> jax.Array:
        """The sum over rows, cut as the head is."""
        if self._scatters:
            dhead = jax.lax.psum_scatter(dhead, self._embed_axis, scatter_dimension=0, tiled=True)
        return jax.lax.psum(dhead, self._sum_axes) if self._sum_axes else dhead


def _logits(states: jax.Array, head: jax.Array, bias: jax.Array | None) -> jax.Array:
    """[C, V]"""
    logits = jnp.einsum("CD,DV->CV", states, head, preferred_element_type=_wide(states))
    return logits if bias is None else logits + bias.astype(logits.dtype)


def _wide(x: jax.Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)
