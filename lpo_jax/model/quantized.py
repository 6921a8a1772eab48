"""Quantised matrices of a frozen base: int8 with a scale for each output, int4 or nf4 with one for each block of inputs.

Qwix's `QArray` holds codes and scales, and its `quantize` finds int8's. Qwix would also rewrite a model's products, by intercepting the calls of
Flax modules or JAX functions; ours are plain functions of a tree of arrays, so here a matrix is dequantised where it is multiplied. That is done
with elementwise operations alone: each device dequantises what it holds, and XLA has nothing to reshard. (For nf4 Qwix flattens the array, and
looks each number up by itself.)

nf4's 16 values are the quantiles of a normal distribution between its extremes (Dettmers et al. 2023, QLoRA, appendix E).

*Scales of 4-bit blocks* are bfloat16, of 32 inputs: 0.5 bits a weight, as many as float32 scales of 64 would be. Usually the block's number of
largest magnitude is put on the outermost code. Here a few scales near that one are tried, and the one with the least squared error is taken. Negative
ones are among them, since neither kind's codes are symmetric. So of Gaussian numbers nf4's squared error is 0.71 of the usual one's in blocks of 64.

Dims: in and out a matrix' input and output dims, one or more each; behind leading dims (layers, experts) that have a matrix each.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import qwix
from jax.sharding import Mesh, PartitionSpec
from qwix import QArray

from lpo_jax import sharding

BLOCK = 32
"""Most inputs that share a scale in int4 and nf4; where it doesn't divide the last input dim, the largest number below that does."""

TRIED = (0.92, 0.96, 1.0, 1.04)
"""The scales that are tried, as multiples of that which puts the block's largest number on the outermost code; and their negatives."""

CODES = {"int8": jnp.int8, "int4": jnp.int4, "nf4": jnp.uint4}
"""By kind, the dtype of the codes."""

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


def quantize(w: jax.Array, kind: str, leading: int, inputs: int) -> QArray:
    """[*leading, *in, *out] -> codes of the same shape, and scales with as many dims: float32 for int8, else bfloat16.

    Args:
      kind: "int8", "int4" or "nf4".
      leading: how many dims come before the matrix' own.
      inputs: how many of these are inputs.
    """
    last, wide = leading + inputs - 1, w.astype(jnp.float32)
    if kind == "int8":
        own = [*range(leading), *range(leading + inputs, w.ndim)]  # dims along which each place has a scale of its own
        return dataclasses.replace(qwix.quantize(wide, kind, channelwise_axes=own), qtype=kind)
    size = max(size for size in range(1, BLOCK + 1) if w.shape[last] % size == 0)
    blocks = wide.reshape(*w.shape[:last], -1, size, *w.shape[last + 1 :])
    largest = jnp.abs(blocks).max(last + 1, keepdims=True)
    outermost = jnp.where(largest > 1e-19, largest, 1) / {"int4": 8, "nf4": 1}[kind]

    def attempt(multiple: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The codes for one scale, and the scale itself."""
        scale = (multiple * outermost).astype(jnp.bfloat16)
        return _codes(blocks / scale.astype(jnp.float32), kind), scale

    def better(best: tuple[jax.Array, jax.Array], multiple: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        codes, scale = attempt(multiple)
        error = ((_values(codes, kind, jnp.float32) * scale.astype(jnp.float32) - blocks) ** 2).sum(last + 1, keepdims=True)
        return (jnp.minimum(error, best[0]), jnp.where(error < best[0], multiple, best[1])), None

    start = jnp.full_like(largest, jnp.inf), jnp.ones_like(largest)
    (_, chosen), _ = jax.lax.scan(better, start, jnp.array([*TRIED, *(-multiple for multiple in TRIED)]))
    codes, scale = attempt(chosen)
    return QArray(codes.reshape(w.shape).astype(CODES[kind]), scale.squeeze(last + 1), qtype=kind)


def _codes(x: jax.Array, kind: str) -> jax.Array:
    """The code of the nearest value."""
    if kind == "int4":
        return jnp.clip(jnp.round(x), -8, 7).astype(jnp.int32)
    between = [(low + high) / 2 for low, high in itertools.pairwise(NF4)]
    return sum(((x > middle).astype(jnp.int32) for middle in between), jnp.zeros((), jnp.int32))


def _values(codes: jax.Array, kind: str, dtype: Any) -> jax.Array:
    """What codes stand for, but for the scale."""
    return _nf4(codes, dtype) if kind == "nf4" else codes.astype(dtype)


def dequantize(w: QArray, dtype: Any) -> jax.Array:
    """The matrix, computed in float32 or wider."""
    wide = jnp.promote_types(dtype, jnp.float32)
    values = _values(w.qvalue, w.qtype, wide)
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
    made = {
        name: quantize(w, kind, 2 if name.startswith("expert_") else 1, inputs[f"blocks.{name}"])  # behind layers, and experts
        for name, w in params["blocks"].items()
        if f"blocks.{name}" in inputs
    }
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


def specs(w: Any, spec: PartitionSpec) -> Any:
    """How each array of a matrix is cut where the matrix, quantised or not, is cut as `spec` says."""
    return jax.tree.map(lambda x: PartitionSpec(*_own((*spec, *(None,) * (x.ndim - len(spec))), x, w)), w)


def _own(axes: sharding.Axes, x: Any, w: Any) -> list[str | None]:
    """The names of an array's dims, or the mesh axes that cut them, without those along which a scale is shared by all."""
    return [name if x.shape == w.shape or size > 1 else None for name, size in zip(axes, x.shape, strict=True)]
