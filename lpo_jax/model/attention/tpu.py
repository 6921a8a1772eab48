"""The back end for TPUs: Pallas kernels over the blocks that `Ancestors` lists.

Scores stand transposed, keys along sublanes and queries along lanes, so that everything a query has one of (maximum, sum, lse, delta) is a
row of a vector register, and every product but one needs no transposition. The last grid axis walks a block's list; steps beyond its
count do nothing, and fetch nothing, since the list repeats its last entry.

Dims: B batch, T tokens, n blocks, C tokens in a block, K kv heads, G query heads per kv head, H head dim.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lpo_jax.model.attention.mask import LOWEST, Ancestors, platform


def forward(q: jax.Array, k: jax.Array, v: jax.Array, a: Ancestors) -> tuple[jax.Array, jax.Array]:
    """See `lpo_jax.model.attention.dispatch.BACKENDS`."""
    B, K, G, T, H = q.shape

    def kernel(q, k, v, ends, key_positions, query_positions, out, lse, acc, top, total, *, where, first, last):
        @pl.when(first)
        def _():
            acc[...] = jnp.zeros_like(acc)
            top[...] = jnp.full_like(top, LOWEST)
            total[...] = jnp.zeros_like(total)

        @pl.when(where.active)
        def _():
            scores = _scores(q, k, (ends, key_positions, query_positions), where, a)  # [keys, queries]
            higher = jnp.maximum(top[...], scores.max(0, keepdims=True))
            weights, shrink = jnp.exp(scores - higher), jnp.exp(top[...] - higher)
            top[...] = higher
            total[...] = total[...] * shrink + weights.sum(0, keepdims=True)
            acc[...] = acc[...] * shrink + _dot(v[...], weights.astype(v.dtype), 0, 0)  # [H, queries]

        @pl.when(last)
        def _():
            out[...] = (acc[...] / total[...]).T.astype(out.dtype)
            lse[...] = top[...] + jnp.log(total[...])

    of_query = lambda b, h, i, step, lists, counts: (b, h // G, h % G, i, 0)  # noqa: E731
    row_of_query = lambda b, h, i, step, lists, counts: (b, h // G, h % G, 0, i)  # noqa: E731
    of_key = lambda b, h, i, step, lists, counts: (b, h // G, lists[b, i, step], 0)  # noqa: E731
    C = a.block
    out, lse = _call(
        kernel,
        a,
        a.key_blocks,
        a.key_counts,
        grid=(B, K * G, T // C, T // C),
        operands=[(q, _tile(3, C, H), of_query), (k, _tile(2, C, H), of_key), (v, _tile(2, C, H), of_key)],
        mask_maps=(lambda b, h, i, step, lists, counts: (b, lists[b, i, step], 0), lambda b, h, i, step, lists, counts: (b, 0, i)),
        outputs=[(jax.ShapeDtypeStruct(q.shape, q.dtype), _tile(3, C, H), of_query),
                 (jax.ShapeDtypeStruct((B, K, G, 1, T), jnp.float32), _tile(3, 1, C), row_of_query)],
        scratch=[(H, C), (1, C), (1, C)],
        query_major=True,
        products=2,
    )  # fmt: skip
    return out, lse[..., 0, :]


def backward(
    q: jax.Array, k: jax.Array, v: jax.Array, a: Ancestors, lse: jax.Array, delta: jax.Array, dout: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `lpo_jax.model.attention.dispatch.BACKENDS`."""
    B, K, G, T, H = q.shape
    C, n, scale = a.block, T // a.block, H**-0.5
    lse, delta = lse[..., None, :], delta[..., None, :].astype(jnp.float32)

    def dscores_of(q, k, v, dout, lse, delta, masks, where):
        weights = jnp.exp(_scores(q, k, masks, where, a) - lse[...])
        dweights = _dot(v[...], dout[...], 1, 1)  # [keys, queries]
        return weights.astype(q.dtype), (weights * (dweights - delta[...]) * scale).astype(q.dtype)

    def query_kernel(q, k, v, dout, lse, delta, *refs, where, first, last):
        *masks, dq, acc = refs

        @pl.when(first)
        def _():
            acc[...] = jnp.zeros_like(acc)

        @pl.when(where.active)
        def _():
            _, dscores = dscores_of(q, k, v, dout, lse, delta, masks, where)
            acc[...] += _dot(k[...], dscores, 0, 0)  # [H, queries]

        @pl.when(last)
        def _():
            dq[...] = acc[...].T.astype(dq.dtype)

    def key_kernel(q, k, v, dout, lse, delta, *refs, where, first, last):
        *masks, dk, dv, dk_acc, dv_acc = refs

        @pl.when(first)
        def _():
            dk_acc[...] = jnp.zeros_like(dk_acc)
            dv_acc[...] = jnp.zeros_like(dv_acc)

        @pl.when(where.active)
        def _():
            weights, dscores = dscores_of(q, k, v, dout, lse, delta, masks, where)
            dv_acc[...] += _dot(weights, dout[...], 1, 0)
            dk_acc[...] += _dot(dscores, q[...], 1, 0)

        @pl.when(last)
        def _():
            dk[...] = dk_acc[...].astype(dk.dtype)
            dv[...] = dv_acc[...].astype(dv.dtype)

    def operands(of_query: Callable, row_of_query: Callable, of_key: Callable) -> list[tuple]:
        return [
            (q, _tile(3, C, H), of_query), (k, _tile(2, C, H), of_key), (v, _tile(2, C, H), of_key), (dout, _tile(3, C, H), of_query),
            (lse, _tile(3, 1, C), row_of_query), (delta, _tile(3, 1, C), row_of_query),
        ]  # fmt: skip

    of_query = lambda b, h, i, step, lists, counts: (b, h // G, h % G, i, 0)  # noqa: E731
    (dq,) = _call(
        query_kernel,
        a,
        a.key_blocks,
        a.key_counts,
        grid=(B, K * G, n, n),
        operands=operands(
            of_query,
            lambda b, h, i, step, lists, counts: (b, h // G, h % G, 0, i),
            lambda b, h, i, step, lists, counts: (b, h // G, lists[b, i, step], 0),
        ),
        mask_maps=(lambda b, h, i, step, lists, counts: (b, lists[b, i, step], 0), lambda b, h, i, step, lists, counts: (b, 0, i)),
        outputs=[(jax.ShapeDtypeStruct(q.shape, q.dtype), _tile(3, C, H), of_query)],
        scratch=[(H, C)],
        query_major=True,
        products=3,
    )
    # A block of keys gathers from all query heads of its group: the last axis walks the list once a head.
    of_key = lambda b, h, j, step, lists, counts: (b, h, j, 0)  # noqa: E731
    dk, dv = _call(
        key_kernel,
        a,
        a.query_blocks,
        a.query_counts,
        grid=(B, K, n, G * n),
        operands=operands(
            lambda b, h, j, step, lists, counts: (b, h, step // n, lists[b, j, step % n], 0),
            lambda b, h, j, step, lists, counts: (b, h, step // n, 0, lists[b, j, step % n]),
            of_key,
        ),
        mask_maps=(
            lambda b, h, j, step, lists, counts: (b, j, 0),
            lambda b, h, j, step, lists, counts: (b, 0, lists[b, j, step % n]),
        ),
        outputs=[(jax.ShapeDtypeStruct(x.shape, x.dtype), _tile(2, C, H), of_key) for x in (k, v)],
        scratch=[(C, H), (C, H)],
        query_major=False,
        products=4,
    )
    return dq, dk, dv


class _Where:
    """Which blocks a program works on."""

    def __init__(self, lists: jax.Array, counts: jax.Array, n: int, query_major: bool):
        b, own, step = pl.program_id(0), pl.program_id(2), pl.program_id(3) % n
        other = lists[b, own, step]
        self.queries = own if query_major else other
        self.keys = other if query_major else own
        self.active = step < counts[b, own]


def _call(
    kernel: Callable,
    a: Ancestors,
    lists: jax.Array,
    counts: jax.Array,
    *,
    grid: tuple[int, int, int, int],
    operands: list[tuple],
    mask_maps: tuple[Callable, Callable],
    outputs: list[tuple],
    scratch: list[tuple[int, int]],
    query_major: bool,
    products: int,
) -> list[jax.Array]:
    """One Pallas call: `kernel` gets the operands' blocks, the mask's columns and row, the outputs, and float32 scratch."""
    of_key, of_query = mask_maps
    T, C, n = a.subtree_end.shape[1], a.block, a.subtree_end.shape[1] // a.block
    column, row = (None, C, 1), (None, 1, C)
    # What belongs to keys stands in columns, what belongs to queries in a row.
    masks = [
        (a.subtree_end[..., None], column, of_key),
        (a.positions[..., None], column, of_key),
        (a.positions[:, None], row, of_query),
    ]

    def body(lists, counts, *refs):
        step, where = pl.program_id(3), _Where(lists, counts, n, query_major)
        kernel(*refs, where=where, first=step == 0, last=step == grid[3] - 1)

    heads, H = operands[0][0].shape[1] * operands[0][0].shape[2], operands[0][0].shape[-1]
    inputs = [*operands, *masks]
    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid,
            in_specs=[pl.BlockSpec(block, index) for _, block, index in inputs],
            out_specs=[pl.BlockSpec(block, index) for _, block, index in outputs],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        ),
        out_shape=[shape for shape, _, _ in outputs],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        # An upper bound: of a full lower triangle, however many blocks the data skips.
        cost_estimate=pl.CostEstimate(
            flops=products * grid[0] * heads * H * T * (T + C),
            transcendentals=grid[0] * heads * T * (T + C) // 2,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*(x for x, _, _ in operands), *(x for x, _, _ in outputs))),
        ),
        interpret=platform() != "tpu",
    )(lists, counts, *(x for x, _, _ in inputs))


def _tile(outer: int, *tile: int) -> tuple[int | None, ...]:
    """A block of one index along the outer dims, a tile along the others."""
    return (*(None,) * outer, *tile)


def _scores(q, k, masks, where: _Where, a: Ancestors) -> jax.Array:
    """Masked scores [keys, queries]."""
    ends, key_positions, query_positions = masks
    scores = _dot(k[...], q[...], 1, 1) * q.shape[-1] ** -0.5
    key = where.keys * a.block + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    query = where.queries * a.block + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    visible = (key <= query) & (query < ends[...])
    if a.window is not None:
        visible &= query_positions[...] - key_positions[...] < a.window
    return jnp.where(visible, scores, LOWEST)


def _dot(x: jax.Array, y: jax.Array, x_dim: int, y_dim: int) -> jax.Array:
    """Contract dim `x_dim` of x with dim `y_dim` of y; float32 sums, and float32 products of float32 factors."""
    exact = x.dtype == jnp.float32
    return jax.lax.dot_general(
        x,
        y,
        (((x_dim,), (y_dim,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else None,
        preferred_element_type=jnp.float32,
    )
