"""The product of inputs with a weight matrix and, beside it, with the matrix' low-rank adapter (Hu et al. 2021): x W + s (drop(x) A) B.

W isn't changed: no sum W + s A B is ever formed, and where only A and B are trained no gradient of W is either.

*Precision.* All products take operands of x's dtype, the compute dtype, as those of the weights do; A and B are kept and updated in float32.
PEFT by default multiplies with A and B in float32 beside a bfloat16 model. The rounding of A and B that this spares is of the size of the rounding
of x and of x W beside them, and in float32 both are the same.

*Dropout* is PEFT's: of each token and each of the matrix' inputs on its own, with a fresh mask for every adapted module. A tensor that fuses
several matrices (qkv) is one module. Masks follow from the key alone: they are the same on every mesh, and when a layer is computed again.
A token of a tree has one mask. So both branches see the same draw of the trunk that they share; two separate sequences would see two.

Dims: B batch, T tokens, R rank, in and out a matrix' input and output dims, one or more each.
"""

from collections.abc import Mapping
from typing import NamedTuple
from zlib import crc32

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from qwix import QArray

from lpo_jax.config import LoraConfig
from lpo_jax.model.quantized import dequantize


class Adapter(NamedTuple):
    """What is added to one matrix' product."""

    a: jax.Array  # [*in, R]
    b: jax.Array  # [R, *out]
    scale: float
    dropout: float = 0.0
    key: jax.Array | None = None  # draws the dropout; None: there is none


class LowRank(NamedTuple):
    """An adapter's product in two parts, for those who multiply a part of the tokens or columns at a time."""

    states: jax.Array  # s drop(x) A, [B, T, R]
    matrix: jax.Array  # B, [R, out]


def adapters_of(
    matrices: Mapping[str, Mapping[str, jax.Array]], config: LoraConfig, modules: Mapping[str, str], key: jax.Array | None
) -> dict[str, Adapter]:
    """{"a": [*in, R], "b": [R, *out]} of each matrix as its `Adapter`. Matrices of one module share their masks."""
    seeds = {name: None if key is None else jax.random.fold_in(key, crc32(modules[name].encode())) for name in matrices}
    return {name: Adapter(m["a"], m["b"], config.alpha / config.rank, config.dropout, seeds[name]) for name, m in matrices.items()}


def product(x: jax.Array, w: jax.Array | QArray, adapter: Adapter | None = None) -> jax.Array:
    """[B, T, *in], [*in, *out] -> [B, T, *out] in x's dtype. The backward pass dequantises a quantised matrix again: nothing else of it is kept.

    These are products of two matrices. A product with several row or column dims has a backward pass that is half as fast on CPUs.
    """
    (B, T, *inputs), rows = x.shape, x.reshape(x.shape[0] * x.shape[1], -1)
    y = (jax.checkpoint(_product) if isinstance(w, QArray) else _product)(rows, w)
    if adapter is not None:
        states, matrix = low_rank(rows, adapter)
        y += states @ matrix
    return y.reshape(B, T, *w.shape[len(inputs) :])


def _product(rows: jax.Array, w: jax.Array | QArray) -> jax.Array:
    return rows @ _weight(w, rows.dtype).reshape(rows.shape[1], -1)


def low_rank(x: jax.Array, adapter: Adapter) -> LowRank:
    """The adapter's part for x [..., in], its inputs flattened."""
    if adapter.key is not None and adapter.dropout:
        x = jnp.where(kept(adapter.key, x.shape, adapter.dropout), x / (1 - adapter.dropout), 0)
    rank = adapter.a.shape[-1]
    a, b = adapter.a.reshape(-1, rank).astype(x.dtype), adapter.b.reshape(rank, -1).astype(x.dtype)
    return LowRank(checkpoint_name(x @ a, "low_rank") * adapter.scale, b)


def kept(key: jax.Array, shape: tuple[int, ...], dropout: float) -> jax.Array:
    """Which inputs a dropout keeps: each is kept or not on its own."""
    return jax.random.bernoulli(key, 1 - dropout, shape)


def _weight(w: jax.Array | QArray, dtype: jnp.dtype) -> jax.Array:
    """`w.astype(dtype)`, bit for bit, or what a quantised matrix stands for.

    XLA moves a plain conversion of each layer's matrix out of the loop over layers. That makes a second copy of the whole model, which lives
    as long as the step. It doesn't move a rounding, and the conversion behind it changes nothing more.
    """
    if isinstance(w, QArray):
        return dequantize(w, dtype)
    if w.dtype != dtype:
        w = jax.lax.reduce_precision(w, jnp.finfo(dtype).nexp, jnp.finfo(dtype).nmant)
    return w.astype(dtype)
