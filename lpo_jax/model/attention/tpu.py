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


def forward(q: jax.Array, k: jax.Array, v: jax.Array, a: Ancestors, scale: float) -> tuple[jax.Array, jax.Array]:
    """See `lpo_jax.model.attention.dispatch.BACKENDS`."""
    B, K, G, T, H = q.shape
    C = a.block

    def kernel(q, k, v, ends, positions, lowest, out, lse, acc, top, total, *, at, active, first, last):
        @pl.when(first)
        def _():
            acc[...] = jnp.zeros_like(acc)
            top[...] = jnp.full_like(top, LOWEST)
            total[...] = jnp.zeros_like(total)

        @pl.when(active)
        def _():
            scores = _scores(q, k, (ends, positions, lowest), at, a, scale)  # [keys, queries]
            higher = jnp.maximum(top[...], scores.max(0, keepdims=True))
            weights, shrink = jnp.exp(scores - higher), jnp.exp(top[...] - higher)
            top[...] = higher
            total[...] = total[...] * shrink + weights.sum(0, keepdims=True)
            acc[...] = acc[...] * shrink + _dot(v[...], weights.astype(v.dtype), 0, 0)  # [H, queries]

        @pl.when(last)
        def _():
            out[...] = (acc[...] / total[...]).T.astype(out.dtype)
            lse[...] = top[...] + jnp.log(total[...])

    out, lse = _call(
        kernel,
        a,
        operands=[(q, "queries"), (k, "keys"), (v, "keys")],
        outputs=[(q, "queries"), (jax.ShapeDtypeStruct((B, K, G, 1, T), jnp.float32), "row")],
        scratch=[(H, C), (1, C), (1, C)],
        query_major=True,
        products=2,
    )
    return out, lse[..., 0, :]


def backward(
    q: jax.Array, k: jax.Array, v: jax.Array, a: Ancestors, scale: float, lse: jax.Array, delta: jax.Array, dout: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `lpo_jax.model.attention.dispatch.BACKENDS`."""
    C, H = a.block, q.shape[-1]
    lse, delta = lse[..., None, :], delta[..., None, :].astype(jnp.float32)

    def dscores_of(q, k, v, dout, lse, delta, masks, at):
        weights = jnp.exp(_scores(q, k, masks, at, a, scale) - lse[...])
        dweights = _dot(v[...], dout[...], 1, 1)  # [keys, queries]
        return weights.astype(q.dtype), (weights * (dweights - delta[...]) * scale).astype(q.dtype)

    def query_kernel(q, k, v, dout, lse, delta, *refs, at, active, first, last):
        *masks, dq, acc = refs

        @pl.when(first)
        def _():
            acc[...] = jnp.zeros_like(acc)

        @pl.when(active)
        def _():
            _, dscores = dscores_of(q, k, v, dout, lse, delta, masks, at)
            acc[...] += _dot(k[...], dscores, 0, 0)  # [H, queries]

        @pl.when(last)
        def _():
            dq[...] = acc[...].T.astype(dq.dtype)

    def key_kernel(q, k, v, dout, lse, delta, *refs, at, active, first, last):
        *masks, dk, dv, dk_acc, dv_acc = refs

        @pl.when(first)
        def _():
            dk_acc[...] = jnp.zeros_like(dk_acc)
            dv_acc[...] = jnp.zeros_like(dv_acc)

        @pl.when(active)
        def _():
            weights, dscores = dscores_of(q, k, v, dout, lse, delta, masks, at)
            dv_acc[...] += _dot(weights, dout[...], 1, 0)
            dk_acc[...] += _dot(dscores, q[...], 1, 0)

        @pl.when(last)
        def _():
            dk[...] = dk_acc[...].astype(dk.dtype)
            dv[...] = dv_acc[...].astype(dv.dtype)

    operands = [(q, "queries"), (k, "keys"), (v, "keys"), (dout, "queries"), (lse, "row"), (delta, "row")]
    (dq,) = _call(query_kernel, a, operands, [(q, "queries")], [(H, C)], query_major=True, products=3)
    dk, dv = _call(key_kernel, a, operands, [(k, "keys"), (v, "keys")], [(C, H), (C, H)], query_major=False, products=4)
    return dq, dk, dv


def _call(
    kernel: Callable,
    a: Ancestors,
    operands: list[tuple[jax.Array, str]],
    outputs: list[tuple[jax.Array | jax.ShapeDtypeStruct, str]],
    scratch: list[tuple[int, int]],
    *,
    query_major: bool,
    products: int,
) -> list[jax.Array]:
    """One Pallas call: `kernel` gets the operands' blocks, the mask's columns and row, the outputs, and float32 scratch.

    An operand is the first of all queries' [B, K, G, T, H], and it goes with what its block holds: "queries" [C, H], "keys" [C, H] of
    [B, K, T, H], or a "row" [1, C] of [B, K, G, 1, T], of a number for each query.

    A program owns a block of queries (`query_major`) and walks the keys' blocks, or the other way round. A block of keys gathers from all
    query heads of its group: there the last grid axis walks the list once a head.
    """
    B, K, G, T, H = operands[0][0].shape
    C, n = a.block, T // a.block
    lists, counts = (a.key_blocks, a.key_counts) if query_major else (a.query_blocks, a.query_counts)
    grid = (B, K * G, n, n) if query_major else (B, K, n, G * n)

    def where(b, h, own, step, lists):
        """The kv head, the query head within its group, the block of queries, the block of keys."""
        other = lists[b, own, step % n]
        return (h // G, h % G, own, other) if query_major else (h, step // n, other, own)

    def spec(kind: str) -> pl.BlockSpec:
        block, index = {
            "queries": ((None, None, None, C, H), lambda b, head, group, query, key: (b, head, group, query, 0)),
            "row": ((None, None, None, 1, C), lambda b, head, group, query, key: (b, head, group, 0, query)),
            "keys": ((None, None, C, H), lambda b, head, group, query, key: (b, head, key, 0)),
            # What belongs to keys stands in columns, what belongs to queries in a row.
            "key mask": ((None, C, 1), lambda b, head, group, query, key: (b, key, 0)),
            "query mask": ((None, 1, C), lambda b, head, group, query, key: (b, 0, query)),
        }[kind]
        return pl.BlockSpec(block, lambda b, h, own, step, lists, counts: index(b, *where(b, h, own, step, lists)))

    masks = [(a.subtree_end[..., None], "key mask"), (a.positions[..., None], "key mask"), (a.lowest[:, None], "query mask")]
    inputs = [*operands, *masks]

    def body(lists, counts, *refs):
        b, h, own, step = (pl.program_id(axis) for axis in range(4))
        at, active = where(b, h, own, step, lists)[2:], step % n < counts[b, own]
        kernel(*refs, at=at, active=active, first=step == 0, last=step == grid[3] - 1)

    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid,
            in_specs=[spec(kind) for _, kind in inputs],
            out_specs=[spec(kind) for _, kind in outputs],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in outputs],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        # An upper bound: of a full lower triangle, however many blocks the data skips.
        cost_estimate=pl.CostEstimate(
            flops=products * B * K * G * H * T * (T + C),
            transcendentals=B * K * G * T * (T + C) // 2,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x, _ in (*operands, *outputs)),
        ),
        interpret=platform() != "tpu",
    )(lists, counts, *(x for x, _ in inputs))


def _scores(q, k, masks, at: tuple[jax.Array, jax.Array], a: Ancestors, scale: float) -> jax.Array:
    """Masked scores [keys, queries] of the blocks `at`."""
    queries, keys = at
    ends, positions, lowest = masks
    scores = _dot(k[...], q[...], 1, 1) * scale
    key = keys * a.block + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    query = queries * a.block + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    visible = (key <= query) & (query < ends[...])
    if a.windowed:
        visible &= positions[...] >= lowest[...]
    return jnp.where(visible, scores, LOWEST)


def _dot(x: jax.Array, y: jax.Array, x_dim: int, y_dim: int) -> jax.Array:
    """Contract dim `x_dim` of x with dim `y_dim` of y; float32 sums, and float32 products of float32 factors."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    dims = ((x_dim,), (y_dim,)), ((), ())
    return jax.lax.dot_general(x, y, dims, precision=precision, preferred_element_type=jnp.float32)
