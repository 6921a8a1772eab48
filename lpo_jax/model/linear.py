"""The product of inputs with a weight matrix and, beside it, with the matrix' low-rank adapter (Hu et al. 2021): x W + s (drop(x) A) B.

W isn't changed: no sum W + s A B is ever formed, and where only A and B are trained no gradient of W is either.

*Precision.* All products take operands of x's dtype, the compute dtype, as those of the weights do; A and B are kept and updated in float32.
PEFT by default multiplies with A and B in float32 beside a bfloat16 model. The rounding of A and B that this spares is of the size of the rounding
of x and of x W beside them, and in float32 both are the same.

*Dropout* is PEFT's: of each token and each of the matrix' inputs on its own, with a fresh mask for every adapted module. A tensor that fuses
several matrices (qkv) is one module. Masks follow from the key alone: they are the same on every mesh, and when a layer is computed again.
A token of a tree has one mask. So both branches see the same draw of the trunk that they share; two separate sequences would see two.

*DoRA* (Liu et al. 2024): each output's column of W + s A B gets a trained norm m, y = m / |W + s A B| * x (W + s A B). As in PEFT, the norm it is
divided by has no gradient, and with dropout y = x W + (m / |W + s A B| - 1) drop(x) W + m / |W + s A B| * s (drop(x) A) B. The sum isn't formed for
its norm either: the norm's square is |W|^2 + 2 s A'W.B + s^2 (A'A B).B, all by column.

*Several adapters* of one base stand side by side along the rank. A row of the batch takes the columns of its own; the others' are zeros in it.
So rows with different adapters share one product, cut over devices as any other. It costs the ranks' sum for every row: little beside W, unless
there are very many. (To gather each row's A and B would copy them for each row and token.)

Dims: B batch, T tokens, R rank, in and out a matrix' input and output dims, one or more each.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple
from zlib import crc32

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from qwix import QArray

from lpo_jax.config import LoraConfig
from lpo_jax.model.attention.mask import platform
from lpo_jax.model.quantized import dequantize

OUTPUTS = 64
"""Most outputs of a quantised matrix that CPUs dequantise at a time."""


class Adapter(NamedTuple):
    """What is added to one matrix' product."""

    a: jax.Array  # [*in, R]
    b: jax.Array  # [R, *out]
    scale: float
    dropout: float = 0.0
    key: jax.Array | None = None  # draws the dropout; None: there is none
    norm: jax.Array | None = None  # [*out]: DoRA's m; None: it is none
    own: jax.Array | None = None  # [B, R] bool: which columns of A a row of the batch takes; None: all


class LowRank(NamedTuple):
    """An adapter's product in two parts, for those who multiply a part of the tokens or columns at a time."""

    states: jax.Array  # s drop(x) A, [B, T, R]
    matrix: jax.Array  # B, [R, out]


@flax.struct.dataclass
class Apart:
    """All layers' matrices [*in, *out], quantised or not, as CPUs multiply few rows fastest: see `Model.apart`."""

    each: tuple[jax.Array, ...] | QArray
    """a matrix [in, out] a layer, as CPUs multiply several rows fastest (one alone would be a third faster with [out, in]); or all layers' codes
    [L, out, in], of which a few outputs are read at a time"""
    shape: tuple[int, ...] = flax.struct.field(pytree_node=False)
    layer: jax.Array | None = None  # int32: which of them is meant

    @classmethod
    @partial(jax.jit, static_argnums=(0, 2))
    def of(cls, stacked: jax.Array | QArray, inputs: int) -> "Apart":
        """From [L, *in, *out] with so many input dims."""
        layers, *shape = stacked.shape
        outputs = math.prod(shape[inputs:])
        if isinstance(stacked, QArray):
            return cls(jax.tree.map(lambda x: x.reshape(layers, -1, outputs).swapaxes(1, 2), stacked), tuple(shape))
        return cls(tuple(stacked.reshape(layers, -1, outputs)), tuple(shape))


def one_of(matrices: Mapping[str, Mapping[str, jax.Array]], which: jax.Array) -> dict[str, Adapter]:
    """Matrices of `lpo_jax.model.adapters.joined`, of which each row takes those of one adapter: `which` [B] is its number, from 1 on; 0: none."""
    return {name: Adapter(m["a"], m["b"], 1.0, own=which[:, None] == m["of"]) for name, m in matrices.items()}


def adapters_of(
    matrices: Mapping[str, Mapping[str, jax.Array]], config: LoraConfig, modules: Mapping[str, str], key: jax.Array | None
) -> dict[str, Adapter]:
    """{"a": [*in, R], "b": [R, *out]} of each matrix as its `Adapter`. Matrices of one module share their masks."""
    seeds = {name: None if key is None else jax.random.fold_in(key, crc32(modules[name].encode())) for name in matrices}
    return {name: Adapter(m["a"], m["b"], config.scale, config.dropout, seeds[name], m.get("norm")) for name, m in matrices.items()}


def product(x: jax.Array, w: jax.Array | QArray | Apart, adapter: Adapter | None = None) -> jax.Array:
    """[B, T, *in], [*in, *out] -> [B, T, *out] in x's dtype. The backward pass dequantises a quantised matrix again: nothing else of it is kept.

    These are products of two matrices. A product with several row or column dims has a backward pass that is half as fast on CPUs.
    """
    (B, T, *inputs), rows = x.shape, x.reshape(x.shape[0] * x.shape[1], -1)
    multiply = jax.checkpoint(_product) if isinstance(w, QArray) else _product
    y = multiply(rows, w)
    if adapter is not None:
        change = jnp.matmul(*low_rank(rows, adapter))
        if adapter.norm is None:
            y += change
        else:
            assert not isinstance(w, Apart)  # decoding's adapters have no norm
            gain = (adapter.norm.reshape(-1) / column_norms(weight(w, x.dtype).reshape(rows.shape[1], -1), adapter)).astype(x.dtype)
            drops = adapter.key is not None and adapter.dropout > 0
            y = y + (gain - 1) * multiply(_dropped(rows, adapter), w) + gain * change if drops else gain * (y + change)
    return y.reshape(B, T, *w.shape[len(inputs) :])


def _product(rows: jax.Array, w: jax.Array | QArray | Apart) -> jax.Array:
    if isinstance(w, Apart):
        assert w.layer is not None
        if isinstance(w.each, QArray):
            return _some_at_a_time(rows, w.each, w.layer)
        return jax.lax.switch(w.layer, [partial(jnp.matmul, rows, own) for own in w.each])
    return rows @ weight(w, rows.dtype).reshape(rows.shape[1], -1)


def _some_at_a_time(rows: jax.Array, w: QArray, layer: jax.Array) -> jax.Array:
    """[T, in], [L, out, in] -> [T, out]. What is dequantised at a time stays in the cache of a CPU's core."""
    some = math.gcd(w.shape[1], OUTPUTS)

    def part(first: jax.Array) -> jax.Array:
        own = jax.tree.map(lambda x: jax.lax.dynamic_slice(x, (layer, first, 0), (1, some, x.shape[2]))[0], w)
        return jnp.einsum("TI,OI->TO", rows, dequantize(own, rows.dtype))

    y = jax.lax.map(part, jnp.arange(0, w.shape[1], some))
    return y.transpose(1, 0, 2).reshape(len(rows), -1)


def low_rank(x: jax.Array, adapter: Adapter) -> LowRank:
    """The adapter's part for x [..., in], its inputs flattened."""
    x = _dropped(x, adapter)
    rank = adapter.a.shape[-1]
    a, b = adapter.a.reshape(-1, rank).astype(x.dtype), adapter.b.reshape(rank, -1).astype(x.dtype)
    states = checkpoint_name(_inner(x, a), "low_rank") * adapter.scale
    if adapter.own is not None:
        states = jnp.where(adapter.own[:, None], states.reshape(len(adapter.own), -1, rank), 0).reshape(states.shape)
    return LowRank(states, b)


@jax.custom_vjp
def _inner(x: jax.Array, a: jax.Array) -> jax.Array:
    """x A: [..., in] -> [..., R]."""
    return x @ a


def _inner_forward(x: jax.Array, a: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ a, (x, a)


def _inner_backward(residuals: tuple[jax.Array, jax.Array], dstates: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, a = residuals
    tokens = tuple(range(x.ndim - 1))
    da = jax.lax.dot_general(dstates, x, ((tokens, tokens), ((), ())))  # [R, in]
    if platform() == "cpu":  # where XLA would turn the product round, and [in, R] takes five times as long
        da = jax.lax.optimization_barrier(da)
    return dstates @ a.T, da.T


_inner.defvjp(_inner_forward, _inner_backward)


def column_norms(matrix: jax.Array, adapter: Adapter) -> jax.Array:
    """Of W + s A B by output: W [in, out] -> [out], in float32 or wider and without a gradient."""
    wide, rank = jnp.promote_types(matrix.dtype, jnp.float32), adapter.a.shape[-1]
    w, a, b = jax.lax.stop_gradient(
        (matrix.astype(wide), adapter.a.reshape(-1, rank).astype(wide), adapter.b.reshape(rank, -1).astype(wide))
    )
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)  # accelerators would round float32 operands
    across = 2 * adapter.scale * product(a.T, w) + adapter.scale**2 * product(product(a.T, a), b)
    return jnp.sqrt((w * w).sum(0) + (across * b).sum(0))


def _dropped(x: jax.Array, adapter: Adapter) -> jax.Array:
    """x with what the adapter's dropout leaves of it."""
    if adapter.key is None or not adapter.dropout:
        return x
    return jnp.where(kept(adapter.key, x.shape, adapter.dropout), x / (1 - adapter.dropout), 0)


def kept(key: jax.Array, shape: tuple[int, ...], dropout: float) -> jax.Array:
    """Which inputs a dropout keeps: each is kept or not on its own."""
    return jax.random.bernoulli(key, 1 - dropout, shape)


def weight(w: jax.Array | QArray, dtype: jnp.dtype) -> jax.Array:
    """`w.astype(dtype)`, bit for bit, or what a quantised matrix stands for.

    XLA moves a plain conversion of each layer's matrix out of the loop over layers. That makes a second copy of the whole model, which lives
    as long as the step. It doesn't move a rounding, and the conversion behind it changes nothing more.
    """
    if isinstance(w, QArray):
        return dequantize(w, dtype)
    if w.dtype != dtype:
        w = jax.lax.reduce_precision(w, jnp.finfo(dtype).nexp, jnp.finfo(dtype).nmant)
    return w.astype(dtype)
