"""Quantised matrices of a frozen base: int8 with a scale for each output, int4 or nf4 with one for each block of inputs.

Qwix's `quantize` chooses codes and scales, and its `QArray` holds them. Qwix would also rewrite a model's products, by intercepting the calls of
Flax modules or JAX functions; ours are plain functions of a tree of arrays, so here a matrix is dequantised where it is multiplied. That is done
with elementwise operations alone: each device dequantises what it holds, and XLA has nothing to reshard. For nf4 Qwix flattens the array, and
looks each number up by itself: its codes are found here in the same way as they are read.

nf4's 16 values are the quantiles of a normal distribution between its extremes (Dettmers et al. 2023, QLoRA, appendix E). Scales are
float32: 0.5 bits a weight with blocks of 64.

Dims: in and out a matrix' input and output dims, one or more each; behind leading dims (layers) that have a matrix each.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import qwix
from jax.sharding import Mesh
from qwix import QArray

from lpo_jax import sharding

BLOCK = 64
"""Most inputs that share a scale in int4 and nf4; where it doesn't divide the last input dim, the largest number below that does."""

CODES = {"int8": jnp.int8, "int4": jnp.int4, "nf4": jnp.uint4}
"""By kind, the dtype of the codes."""

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


def quantize(w: jax.Array, kind: str, leading: int, inputs: int) -> QArray:
    """[*leading, *in, *out] -> codes of the same shape, and float32 scales with as many dims.

    Args:
      kind: "int8", "int4" or "nf4".
      leading: how many dims come before the matrix' own.
      inputs: how many of these are inputs.
    """
    last, wide = leading + inputs - 1, w.astype(jnp.float32)
    own = {*range(leading), *range(leading + inputs, w.ndim)}  # dims along which each place has a scale of its own
    tiled = {}
    if kind != "int8":
        own |= set(range(leading, last))
        tiled = {last: max(size for size in range(1, BLOCK + 1) if w.shape[last] % size == 0)}
    if kind != "nf4":
        return dataclasses.replace(qwix.quantize(wide, kind, channelwise_axes=sorted(own), tiled_axes=tiled), qtype=kind)
    blocks = wide.reshape(*w.shape[:last], -1, tiled[last], *w.shape[last + 1 :])
    largest = jnp.abs(blocks).max(last + 1, keepdims=True)
    scale = jnp.where(largest > 1e-19, largest, 1)
    between = [(low + high) / 2 for low, high in itertools.pairwise(NF4)]
    codes = sum(((blocks / scale > middle).astype(jnp.int32) for middle in between), jnp.zeros((), jnp.int32))
    return QArray(codes.reshape(w.shape).astype(CODES[kind]), scale.squeeze(last + 1), qtype=kind)


def dequantize(w: QArray, dtype: Any) -> jax.Array:
    """The matrix, computed in float32 or wider."""
    wide = jnp.promote_types(dtype, jnp.float32)
    values = _nf4(w.qvalue, wide) if w.qtype == "nf4" else w.qvalue.astype(wide)
    blocks, scales = [], []  # each dim as (blocks, places in a block); a dim whose scale is shared is one block
    for size, number in zip(values.shape, w.scale.shape, strict=True):
        blocks += [number, size // number]
        scales += [number, 1]
    return (values.reshape(blocks) * w.scale.astype(wide).reshape(scales)).reshape(values.shape).astype(dtype)


def _nf4(codes: jax.Array, dtype: Any) -> jax.Array:
    """`NF4[codes]`, as selections by one bit after another: lookups of single numbers are slow on TPUs, and not vectorised on CPUs."""
    codes, values = codes.astype(jnp.int32), [jnp.asarray(value, dtype) for value in NF4]
    for bit in (1, 2, 4, 8):
        odd = (codes & bit) != 0
        values = [jnp.where(odd, high, low) for low, high in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def blocks(params: dict[str, Any], kind: str, inputs: Mapping[str, int]) -> dict[str, Any]:
    """All parameters, with the blocks' matrices quantised. `inputs`: how many input dims each matrix has, "blocks.q": 1 and so on."""
    made = {name: quantize(w, kind, 1, inputs[f"blocks.{name}"]) for name, w in params["blocks"].items() if f"blocks.{name}" in inputs}
    return params | {"blocks": params["blocks"] | made}


def placed(mesh: Mesh, axes: sharding.Axes, w: Any) -> Any:
    """How a parameter, quantised or not, lies on a mesh, from the names of its dims. Scales are cut as the codes are, along the dims they have."""
    return jax.tree.map(lambda x: sharding.named(mesh, _own(axes, x, w), x.shape), w)


def gathered(w: Any, axes: sharding.Axes) -> Any:
    """Inside jit, a matrix as its product needs it: whole along fsdp. So the codes are exchanged between devices, not what they stand for."""
    if not isinstance(w, QArray):
        return w
    kept = [None if name == "embed" else name for name in axes]
    return jax.tree.map(lambda x: sharding.constrain(x, *_own(kept, x, w)), w)


def _own(axes: sharding.Axes, x: Any, w: Any) -> list[str | None]:
    """The names of an array's dims, without those along which a scale is shared by all."""
    return [name if x.shape == w.shape or size > 1 else None for name, size in zip(axes, x.shape, strict=True)]
