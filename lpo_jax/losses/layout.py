"""How rows and vocabulary lie on the mesh while log-probabilities are computed, and the exchanges that this needs.

The *vocabulary* is cut along `tensor` and `fsdp`, whatever the head's own layout is. Rows are cut along `data`, `fsdp` and `expert`. So devices along `fsdp`
have different rows and different columns: each gets the others' hidden states of a chunk, and computes all of them against its own columns.
No device ever holds the whole head or its gradient.

Example: fsdp = 2, 1,000 ids. Device 0 has row 0 and ids 0 to 499, device 1 has row 1 and ids 500 to 999. Both gather the states of both rows.
Each computes half of either row's logits, and a sum over both devices completes the softmax.

Dims: D model, V vocabulary, C tokens in a chunk, those gathered included.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lpo_jax.model.attention.mask import platform
from lpo_jax.sharding import spec


class Layout:
    """The layout for hidden states [B, T, D] on the mesh of the context. Without a mesh, everything is here."""

    def __init__(self, hidden: jax.Array):
        self._mesh = jax.sharding.get_abstract_mesh()
        shape = dict(self._mesh.shape)
        rows = None if self._mesh.empty else spec(("batch",), hidden.shape[:1], shape)[0]
        row_axes = rows if isinstance(rows, tuple) else (rows,)
        # The columns' order: the devices of a tensor-parallel group hold neighbouring fsdp parts.
        self._vocab_axes = tuple(axis for axis in ("tensor", "fsdp") if shape.get(axis, 1) > 1)
        self._gathers = "fsdp" in self._vocab_axes and "fsdp" in row_axes
        self._sum_axes = tuple(axis for axis in row_axes if axis is not None and axis not in self._vocab_axes)
        self.parts = math.prod(shape[axis] for axis in self._vocab_axes)
        self.sharers = shape["fsdp"] if self._gathers else 1  # devices whose tokens are gathered
        vocab, replicas = self._vocab_axes or None, self._sum_axes or None
        self.rows, self.vocab, self.head = PartitionSpec(rows), PartitionSpec(vocab), PartitionSpec(None, vocab)
        # Of sums over rows, each replica of the columns has its own part, [1, ...].
        self.vocab_parts, self.head_parts = PartitionSpec(replicas, vocab), PartitionSpec(replicas, None, vocab)

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

    def softmax(self, logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[C, part of V] -> (top [C], exp(logits - top) [C, part of V], its sum over the whole vocabulary [C])."""
        top = logits.max(-1)
        if self._vocab_axes:
            top = jax.lax.pmax(top, self._vocab_axes)
        exp = jnp.exp(logits - top[:, None])
        if platform() == "cpu":  # where a sum fused with its exp runs on one core
            exp = jax.lax.optimization_barrier(exp)
        return top, exp, self.over_vocabulary(exp.sum(-1))

    def at_target(self, logits: jax.Array, target: jax.Array) -> jax.Array:
        """[C, part of V], [C] -> [C]"""
        column = target - self.columns(logits)[0]
        mine = (column >= 0) & (column < logits.shape[-1])
        return self.over_vocabulary(jnp.where(mine, jnp.take_along_axis(logits, jnp.where(mine, column, 0)[:, None], axis=1)[:, 0], 0))

    def over_vocabulary(self, x: jax.Array) -> jax.Array:
        """The sum over the parts of the vocabulary."""
        return jax.lax.psum(x, self._vocab_axes) if self._vocab_axes else x

    def over_replicas(self, x: jax.Array) -> jax.Array:
        """The sum over the devices that hold the same columns and other rows."""
        return jax.lax.psum(x, self._sum_axes) if self._sum_axes else x

    def most(self, count: jax.Array) -> jax.Array:
        """The largest count among the sharers, who must loop together."""
        return jax.lax.pmax(count, "fsdp") if self._gathers else count
