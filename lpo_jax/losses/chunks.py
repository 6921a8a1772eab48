"""Scored tokens taken a chunk at a time, so that only a chunk's logits exist.

Dims: B rows, T tokens, N scored tokens in a row, D model, R rank, V vocabulary, C tokens in a chunk.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lpo_jax.losses.layout import Layout


class States(NamedTuple):
    """What a head multiplies, of tokens [..., D], and what its adapter does."""

    hidden: Any  # [..., D]
    low_rank: Any  # [..., R] or None


class Head(NamedTuple):
    """An output head, and the outer matrix of its adapter."""

    matrix: Any  # [D, V]
    low_rank: Any  # [R, V] or None
    bias: Any  # [V] or None


def logits(states: States, head: Head) -> jax.Array:
    """[C, V] in float32 or wider."""
    dtype = wide(states.hidden)
    found = jnp.einsum("CD,DV->CV", states.hidden, head.matrix, preferred_element_type=dtype)
    if head.low_rank is not None:
        found += jnp.einsum("CR,RV->CV", states.low_rank, head.low_rank, preferred_element_type=dtype)
    return found if head.bias is None else found + head.bias.astype(dtype)


class Scored(NamedTuple):
    """The scored tokens, [B, N] each."""

    source: jax.Array
    target: jax.Array
    real: jax.Array  # not padding
    linear: jax.Array | None  # see `lpo_jax.losses.logps.token_logps`


class Chunks:
    """Some of a device's scored tokens in one line, and a loop over as many chunks as they fill.

    Example: 8 scored tokens of which 5 are wanted, chunks of 2. The wanted ones are sorted to the front; the loop takes 3 chunks, not 4.
    """

    def __init__(self, states: States, tokens: Scored, which: jax.Array, most: int, layout: Layout, share: int = 1):
        """Take the tokens where `which` [B, N] is true. At most `most` are in a chunk; usually one token in `share` is taken."""
        B, T, _ = states.hidden.shape
        rows = jnp.arange(B)[:, None] * T + tokens.source
        self._share = share
        self.layout, self.wide, self._which = layout, wide(states.hidden), which
        most = max(min(4, layout.sharers) * most // layout.sharers, 1)
        number = -(-rows.size // most)
        self.size = min(-(-rows.size // (8 * number)) * 8, most)  # all alike, so that the last one isn't nearly empty
        self.total = number * self.size
        order = jnp.argsort(~which.reshape(-1), stable=True)
        self._rank = jnp.argsort(order)
        self._order = jnp.pad(order, (0, self.total - rows.size))
        self._count = which.sum()
        self._states = jax.tree.map(lambda x: x.reshape(B * T, -1), states)
        self._rows, self._targets = self.sorted(rows), self.sorted(tokens.target)

    def sorted(self, x: jax.Array, beyond: float = 0) -> jax.Array:
        """[B, N] -> [total], with `beyond` behind the chunks' tokens."""
        return jnp.where(jnp.arange(self.total) < self._count, x.reshape(-1)[self._order], beyond)

    def unsorted(self, x: jax.Array) -> jax.Array:
        """[total] -> [B, N], 0 at other tokens."""
        return jnp.where(self._which, x[self._rank].reshape(self._which.shape), 0)

    def slice(self, x: jax.Array, at: jax.Array) -> jax.Array:
        """Chunk `at` of [total]: [size]."""
        return jax.lax.dynamic_slice_in_dim(x, at * self.size, self.size)

    def write(self, x: jax.Array, part: jax.Array, at: jax.Array) -> jax.Array:
        """The inverse of `slice`."""
        return jax.lax.dynamic_update_slice_in_dim(x, part, at * self.size, 0)

    def row(self, at: jax.Array) -> jax.Array:
        """Where the states of a chunk stand in [B * T]."""
        return self.slice(self._rows, at)

    def target(self, at: jax.Array) -> jax.Array:
        return self.slice(self._targets, at)

    def states(self, at: jax.Array) -> States:
        """Those of a chunk's tokens, [size, ...]."""
        row = self.row(at)
        return jax.tree.map(lambda x: x[row], self._states)

    def loop(self, step: Callable[..., Any], carry: Any) -> Any:
        """``carry = step(chunk, carry)`` for the chunks that hold tokens.

        The loop ends with the last filled chunk. Its condition also compares the counter with how many chunks there usually are, and
        with how many there can be: whoever counts FLOPs or bytes reads these numbers (`lpo_jax.plan.flops`).
        """
        all_chunks, filled = self.total // self.size, self.layout.most(-(-self._count // self.size))
        usual = -(-all_chunks // self._share)
        go_on = lambda state: (state[0] < filled) & ((state[0] < usual) | (state[0] < all_chunks))  # noqa: E731
        return jax.lax.while_loop(go_on, lambda state: (state[0] + 1, step(*state)), (0, carry))[1]


def wide(x: jax.Array) -> jnp.dtype:
    """The dtype in which `x` is summed: float32 or wider."""
    return jnp.promote_types(x.dtype, jnp.float32)
