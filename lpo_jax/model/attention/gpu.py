"""The back end for GPUs: Pallas kernels (Triton) over the blocks that `Ancestors` lists.

A program holds one block of queries (or keys) and loops over its list. What nobody sees is neither read nor computed.

Dims: B batch, T tokens, n blocks, C tokens in a block, K kv heads, G query heads per kv head, H head dim.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from lpo_jax.model.attention.mask import LOWEST, Ancestors, platform


def forward(q: jax.Array, k: jax.Array, v: jax.Array, a: Ancestors) -> tuple[jax.Array, jax.Array]:
    """See `lpo_jax.model.attention.dispatch.BACKENDS`."""
    B, K, G, T, H = q.shape
    q, k, v = (_power_of_two(x) for x in (q, k, v))
    C, scale = a.block, H**-0.5

    def kernel(q_ref, k_ref, v_ref, ends, positions, lists, counts, out_ref, lse_ref):
        i = pl.program_id(2)
        q = q_ref[...]

        def keys(step, carry):
            acc, top, total = carry
            j = lists[step]
            at = pl.ds(j * C, C)
            scores = _masked(_dot(q, k_ref[at, :].T) * scale, i, j, ends, positions, a)
            higher = jnp.maximum(top, scores.max(1))
            weights, shrink = jnp.exp(scores - higher[:, None]), jnp.exp(top - higher)
            v = v_ref[at, :]
            return acc * shrink[:, None] + _dot(weights.astype(v.dtype), v), higher, total * shrink + weights.sum(1)

        start = jnp.zeros(q.shape, jnp.float32), jnp.full((C,), LOWEST, jnp.float32), jnp.zeros((C,), jnp.float32)
        acc, top, total = jax.lax.fori_loop(0, counts[...], keys, start)
        out_ref[...] = (acc / total[:, None]).astype(out_ref.dtype)
        lse_ref[...] = top + jnp.log(total)

    of_query, of_head, of_row = _query(G), _head(G), _row
    out, lse = _call(
        kernel,
        a,
        a.key_blocks,
        a.key_counts,
        grid=(B, K * G, T // C),
        operands=[(q, (C, q.shape[-1]), of_query), (k, (T, k.shape[-1]), of_head), (v, (T, v.shape[-1]), of_head)],
        outputs=[(jax.ShapeDtypeStruct(q.shape, q.dtype), (C, q.shape[-1]), of_query),
                 (jax.ShapeDtypeStruct((B, K, G, T), jnp.float32), (C,), lambda b, h, i: of_row(G, b, h, i))],
        flops=4 * B * K * G * H * T * (T + C) // 2,
    )  # fmt: skip
    return out[..., :H], lse


def backward(
    q: jax.Array, k: jax.Array, v: jax.Array, a: Ancestors, lse: jax.Array, delta: jax.Array, dout: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `lpo_jax.model.attention.dispatch.BACKENDS`."""
    B, K, G, T, H = q.shape
    q, k, v, dout = (_power_of_two(x) for x in (q, k, v, dout))
    delta, C, scale, wide = delta.astype(jnp.float32), a.block, H**-0.5, q.shape[-1]

    def query_kernel(q_ref, dout_ref, lse_ref, delta_ref, k_ref, v_ref, ends, positions, lists, counts, dq_ref):
        i = pl.program_id(2)
        q, dout, lse, delta = q_ref[...], dout_ref[...], lse_ref[...], delta_ref[...]

        def keys(step, dq):
            j = lists[step]
            at = pl.ds(j * C, C)
            k, v = k_ref[at, :], v_ref[at, :]
            weights = jnp.exp(_masked(_dot(q, k.T) * scale, i, j, ends, positions, a) - lse[:, None])
            dscores = weights * (_dot(dout, v.T) - delta[:, None]) * scale
            return dq + _dot(dscores.astype(k.dtype), k)

        dq_ref[...] = jax.lax.fori_loop(0, counts[...], keys, jnp.zeros(q.shape, jnp.float32)).astype(dq_ref.dtype)

    def key_kernel(k_ref, v_ref, q_ref, dout_ref, lse_ref, delta_ref, ends, positions, lists, counts, dk_ref, dv_ref):
        j = pl.program_id(2)
        k, v = k_ref[...], v_ref[...]

        def queries(step, carry):
            dk, dv = carry
            group, i = step // counts[...], lists[step % counts[...]]
            at = pl.ds(i * C, C)
            q, dout = q_ref[group, at, :], dout_ref[group, at, :]
            weights = jnp.exp(_masked(_dot(q, k.T) * scale, i, j, ends, positions, a) - lse_ref[group, at][:, None])
            dscores = weights * (_dot(dout, v.T) - delta_ref[group, at][:, None]) * scale
            return dk + _dot(dscores.astype(q.dtype).T, q), dv + _dot(weights.astype(dout.dtype).T, dout)

        zeros = jnp.zeros(k.shape, jnp.float32)
        dk, dv = jax.lax.fori_loop(0, G * counts[...], queries, (zeros, zeros))
        dk_ref[...], dv_ref[...] = dk.astype(dk_ref.dtype), dv.astype(dv_ref.dtype)

    of_query, of_head = _query(G), _head(G)
    of_row = lambda b, h, i: _row(G, b, h, i)  # noqa: E731
    (dq,) = _call(
        query_kernel,
        a,
        a.key_blocks,
        a.key_counts,
        grid=(B, K * G, T // C),
        operands=[(q, (C, wide), of_query), (dout, (C, wide), of_query), (lse, (C,), of_row), (delta, (C,), of_row),
                  (k, (T, wide), of_head), (v, (T, wide), of_head)],
        outputs=[(jax.ShapeDtypeStruct(q.shape, q.dtype), (C, wide), of_query)],
        flops=6 * B * K * G * H * T * (T + C) // 2,
    )  # fmt: skip
    of_key = lambda b, h, j: (b, h, j, 0)  # noqa: E731
    group = lambda b, h, j: (b, h, 0, 0, 0)  # noqa: E731
    dk, dv = _call(
        key_kernel,
        a,
        a.query_blocks,
        a.query_counts,
        grid=(B, K, T // C),
        operands=[(k, (C, wide), of_key), (v, (C, wide), of_key), (q, (G, T, wide), group), (dout, (G, T, wide), group),
                  (lse, (G, T), lambda b, h, j: (b, h, 0, 0)), (delta, (G, T), lambda b, h, j: (b, h, 0, 0))],
        outputs=[(jax.ShapeDtypeStruct(x.shape, x.dtype), (C, wide), of_key) for x in (k, v)],
        flops=8 * B * K * G * H * T * (T + C) // 2,
    )  # fmt: skip
    return dq[..., :H], dk[..., :H], dv[..., :H]


def _call(
    kernel: Callable,
    a: Ancestors,
    lists: jax.Array,
    counts: jax.Array,
    *,
    grid: tuple[int, int, int],
    operands: Sequence[tuple],
    outputs: Sequence[tuple],
    flops: int,
) -> list[jax.Array]:
    """One Pallas call: `kernel` gets the operands' blocks, the row's subtree ends and positions, its block's list and count, the outputs."""
    T, n = a.subtree_end.shape[1], lists.shape[-1]
    inputs = [
        *operands,
        (a.subtree_end, (T,), lambda b, h, i: (b, 0)),
        (a.positions, (T,), lambda b, h, i: (b, 0)),
        (lists, (n,), lambda b, h, i: (b, i, 0)),
        (counts, (), lambda b, h, i: (b, i)),
    ]

    def spec(x: jax.ShapeDtypeStruct | jax.Array, block: tuple[int, ...], index: Callable) -> pl.BlockSpec:
        return pl.BlockSpec((*(None,) * (len(x.shape) - len(block)), *block), index)

    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[spec(*x) for x in inputs],
        out_specs=[spec(*x) for x in outputs],
        out_shape=[shape for shape, _, _ in outputs],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        # An upper bound: of a full lower triangle, however many blocks the data skips.
        cost_estimate=pl.CostEstimate(
            flops=flops,
            transcendentals=grid[0] * operands[0][0].shape[1] * T * T // 2,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x, _, _ in (*operands, *outputs)),
        ),
        interpret=platform() != "gpu",
    )(*(x for x, _, _ in inputs))


def _query(G: int) -> Callable:
    return lambda b, h, i: (b, h // G, h % G, i, 0)


def _row(G: int, b: jax.Array, h: jax.Array, i: jax.Array) -> tuple:
    return b, h // G, h % G, i


def _head(G: int) -> Callable:
    return lambda b, h, i: (b, h // G, 0, 0)


def _masked(scores: jax.Array, i: jax.Array, j: jax.Array, ends: jax.Array, positions: jax.Array, a: Ancestors) -> jax.Array:
    """Scores [queries of block i, keys of block j], LOWEST where a key isn't seen."""
    C = a.block
    query, key = i * C + jnp.arange(C), j * C + jnp.arange(C)
    visible = (key[None, :] <= query[:, None]) & (query[:, None] < ends[pl.ds(j * C, C)][None, :])
    if a.window is not None:
        visible &= positions[pl.ds(i * C, C)][:, None] - positions[pl.ds(j * C, C)][None, :] < a.window
    return jnp.where(visible, scores, LOWEST)


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.dot(x, y, preferred_element_type=jnp.float32)


def _power_of_two(x: jax.Array) -> jax.Array:
    """Fill the head dim up with zeros, which change no product: Triton's tiles are powers of two."""
    return jnp.pad(x, (*((0, 0),) * (x.ndim - 1), (0, pl.next_power_of_2(x.shape[-1]) - x.shape[-1])))
