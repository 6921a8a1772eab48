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


def forward(q: jax.Array, k: jax.Array, v: jax.Array, a: Ancestors, scale: float) -> tuple[jax.Array, jax.Array]:
    """See `lpo_jax.model.attention.dispatch.BACKENDS`."""
    B, K, G, T, H = q.shape
    q, k, v = (_power_of_two(x) for x in (q, k, v))
    C = a.block

    def kernel(q_ref, k_ref, v_ref, ends, positions, lowest, lists, counts, out_ref, lse_ref):
        i = pl.program_id(2)
        q = q_ref[...]

        def keys(step, carry):
            acc, top, total = carry
            j = lists[step]
            at = pl.ds(j * C, C)
            scores = _masked(_dot(q, k_ref[at, :].T) * scale, i, j, (ends, positions, lowest), a)
            higher = jnp.maximum(top, scores.max(1))
            weights, shrink = jnp.exp(scores - higher[:, None]), jnp.exp(top - higher)
            v = v_ref[at, :]
            return acc * shrink[:, None] + _dot(weights.astype(v.dtype), v), higher, total * shrink + weights.sum(1)

        start = jnp.zeros(q.shape, jnp.float32), jnp.full((C,), LOWEST, jnp.float32), jnp.zeros((C,), jnp.float32)
        acc, top, total = jax.lax.fori_loop(0, counts[...], keys, start)
        out_ref[...] = (acc / total[:, None]).astype(out_ref.dtype)
        lse_ref[...] = top + jnp.log(total)

    out, lse = _call(
        kernel,
        a,
        own=[q],
        whole=[k, v],
        outputs=[q, jax.ShapeDtypeStruct((B, K, G, T), jnp.float32)],
        query_major=True,
        flops=4 * B * K * G * H * T * (T + C) // 2,
    )
    return out[..., :H], lse


def backward(
    q: jax.Array, k: jax.Array, v: jax.Array, a: Ancestors, scale: float, lse: jax.Array, delta: jax.Array, dout: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `lpo_jax.model.attention.dispatch.BACKENDS`."""
    B, K, G, T, H = q.shape
    q, k, v, dout = (_power_of_two(x) for x in (q, k, v, dout))
    delta, C = delta.astype(jnp.float32), a.block

    def query_kernel(q_ref, dout_ref, lse_ref, delta_ref, k_ref, v_ref, ends, positions, lowest, lists, counts, dq_ref):
        i = pl.program_id(2)
        q, dout, lse, delta = q_ref[...], dout_ref[...], lse_ref[...], delta_ref[...]

        def keys(step, dq):
            j = lists[step]
            at = pl.ds(j * C, C)
            k, v = k_ref[at, :], v_ref[at, :]
            weights = jnp.exp(_masked(_dot(q, k.T) * scale, i, j, (ends, positions, lowest), a) - lse[:, None])
            dscores = weights * (_dot(dout, v.T) - delta[:, None]) * scale
            return dq + _dot(dscores.astype(k.dtype), k)

        dq_ref[...] = jax.lax.fori_loop(0, counts[...], keys, jnp.zeros(q.shape, jnp.float32)).astype(dq_ref.dtype)

    def key_kernel(k_ref, v_ref, q_ref, dout_ref, lse_ref, delta_ref, ends, positions, lowest, lists, counts, dk_ref, dv_ref):
        j = pl.program_id(2)
        k, v = k_ref[...], v_ref[...]

        def queries(step, carry):
            dk, dv = carry
            group, i = step // counts[...], lists[step % counts[...]]
            at = pl.ds(i * C, C)
            q, dout = q_ref[group, at, :], dout_ref[group, at, :]
            weights = jnp.exp(_masked(_dot(q, k.T) * scale, i, j, (ends, positions, lowest), a) - lse_ref[group, at][:, None])
            dscores = weights * (_dot(dout, v.T) - delta_ref[group, at][:, None]) * scale
            return dk + _dot(dscores.astype(q.dtype).T, q), dv + _dot(weights.astype(dout.dtype).T, dout)

        zeros = jnp.zeros(k.shape, jnp.float32)
        dk, dv = jax.lax.fori_loop(0, G * counts[...], queries, (zeros, zeros))
        dk_ref[...], dv_ref[...] = dk.astype(dk_ref.dtype), dv.astype(dv_ref.dtype)

    pairs = B * K * G * H * T * (T + C) // 2
    (dq,) = _call(query_kernel, a, [q, dout, lse, delta], [k, v], [q], query_major=True, flops=6 * pairs)
    dk, dv = _call(key_kernel, a, [k, v], [q, dout, lse, delta], [k, v], query_major=False, flops=8 * pairs)
    return dq[..., :H], dk[..., :H], dv[..., :H]


def _call(
    kernel: Callable,
    a: Ancestors,
    own: Sequence[jax.Array],
    whole: Sequence[jax.Array],
    outputs: Sequence[jax.Array | jax.ShapeDtypeStruct],
    *,
    query_major: bool,
    flops: int,
) -> list[jax.Array]:
    """One Pallas call: `kernel` gets its operands, the row's mask, its block's list and count, the outputs.

    A program is one of a query head's blocks of queries (`query_major`), or one of a kv head's blocks of keys. Of `own` operands and of the
    outputs, [B, heads ..., T, ...], it gets that block. Of `whole` ones it gets all that belongs to its kv head, [B, K, ...].
    """
    B, K, G, T = (own if query_major else whole)[0].shape[:4]
    C, n = a.block, T // a.block
    lists, counts = (a.key_blocks, a.key_counts) if query_major else (a.query_blocks, a.query_counts)
    heads = (lambda h: (h // G, h % G)) if query_major else (lambda h: (h,))
    outer = 3 if query_major else 2

    def block(x: jax.Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
        inner = x.shape[outer + 1 :]
        return pl.BlockSpec((*(None,) * outer, C, *inner), lambda b, h, i: (b, *heads(h), i, *(0,) * len(inner)))

    def of_head(x: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, *x.shape[2:]), lambda b, h, i: (b, heads(h)[0], *(0,) * (x.ndim - 2)))

    of_row = pl.BlockSpec((None, T), lambda b, h, i: (b, 0))
    its_list, its_count = pl.BlockSpec((None, None, n), lambda b, h, i: (b, i, 0)), pl.BlockSpec((None, None), lambda b, h, i: (b, i))
    return pl.pallas_call(
        kernel,
        grid=(B, K * G if query_major else K, n),
        in_specs=[*map(block, own), *map(of_head, whole), of_row, of_row, of_row, its_list, its_count],
        out_specs=[block(x) for x in outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        # An upper bound: of a full lower triangle, however many blocks the data skips.
        cost_estimate=pl.CostEstimate(
            flops=flops,
            transcendentals=B * K * T * T // 2,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*own, *whole, *outputs)),
        ),
        interpret=platform() != "gpu",
    )(*own, *whole, a.subtree_end, a.positions, a.lowest, lists, counts)


def _masked(scores: jax.Array, i: jax.Array, j: jax.Array, masks: tuple[jax.Array, ...], a: Ancestors) -> jax.Array:
    """Scores [queries of block i, keys of block j], LOWEST where a key isn't seen."""
    C, (ends, positions, lowest) = a.block, masks
    query, key = i * C + jnp.arange(C), j * C + jnp.arange(C)
    visible = (key[None, :] <= query[:, None]) & (query[:, None] < ends[pl.ds(j * C, C)][None, :])
    if a.windowed:
        visible &= positions[pl.ds(j * C, C)][None, :] >= lowest[pl.ds(i * C, C)][:, None]
    return jnp.where(visible, scores, LOWEST)


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.dot(x, y, preferred_element_type=jnp.float32)


def _power_of_two(x: jax.Array) -> jax.Array:
    """Fill the head dim up with zeros, which change no product: Triton's tiles are powers of two."""
    return jnp.pad(x, (*((0, 0),) * (x.ndim - 1), (0, pl.next_power_of_2(x.shape[-1]) - x.shape[-1])))
