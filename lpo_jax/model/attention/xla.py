"""The back end in plain XLA: two nested loops over blocks. For CPUs, where no [T, T] array fits a cache, and for every other platform.

Dims: B batch, T tokens, n blocks, C tokens in a block, K kv heads, G query heads per kv head, H head dim, Q queries.
"""

import jax
import jax.numpy as jnp

from lpo_jax.model.attention.mask import Ancestors


def forward(q: jax.Array, k: jax.Array, v: jax.Array, a: Ancestors, scale: float) -> tuple[jax.Array, jax.Array]:
    """See `lpo_jax.model.attention.dispatch.BACKENDS`."""
    B, K, G, T, H = q.shape
    C, n, wide = a.block, T // a.block, jnp.promote_types(q.dtype, jnp.float32)
    qs, ks, vs = (_blocks(x, C) for x in (q, k, v))

    def queries(at: jax.Array, done: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        b, i = at // n, at % n
        q = qs[b, i]

        def keys(step: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            out, top, total = carry
            j = a.key_blocks[b, i, step]
            scores = jnp.where(_visible(a, b, i, j), _scores(q, ks[b, j], wide, scale), -jnp.inf)
            # A query may see nothing of a block: its maximum is then that of the blocks before, or the lowest number there is.
            higher = jnp.maximum(top, scores.max(-1))
            weights, shrink = jnp.exp(scores - higher[..., None]), jnp.exp(top - higher)
            seen = jnp.einsum("KGQT,KTH->KGQH", weights.astype(v.dtype), vs[b, j], preferred_element_type=wide)
            return out * shrink[..., None] + seen, higher, total * shrink + weights.sum(-1)

        lowest = jnp.full((K, G, C), jnp.finfo(wide).min)
        start = jnp.zeros((K, G, C, H), wide), lowest, jnp.zeros((K, G, C), wide)
        out, top, total = jax.lax.fori_loop(0, a.key_counts[b, i], keys, start)
        return done[0].at[b, i].set((out / total[..., None]).astype(q.dtype)), done[1].at[b, i].set(top + jnp.log(total))

    empty = jnp.zeros((B, n, K, G, C, H), q.dtype), jnp.zeros((B, n, K, G, C), wide)
    out, lse = jax.lax.fori_loop(0, B * n, queries, empty)
    return _rows(out), _rows(lse[..., None])[..., 0]


def backward(
    q: jax.Array, k: jax.Array, v: jax.Array, a: Ancestors, scale: float, lse: jax.Array, delta: jax.Array, dout: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `lpo_jax.model.attention.dispatch.BACKENDS`."""
    B, _, _, T, H = q.shape
    C, n, wide = a.block, T // a.block, lse.dtype
    qs, ks, vs, douts = (_blocks(x, C) for x in (q, k, v, dout))
    lses, deltas = (_blocks(x[..., None], C) for x in (lse, delta))

    def queries(at: jax.Array, done: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        b, i = at // n, at % n
        q, dout, lse, delta = (x[b, i] for x in (qs, douts, lses, deltas))

        def keys(step: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            dq, dk, dv = carry
            j = a.key_blocks[b, i, step]
            k, v = ks[b, j], vs[b, j]
            # Keys first: these products take both their operands as they lie.
            scores = jnp.einsum("KTH,KGQH->KTGQ", k, q, preferred_element_type=wide) * scale
            weights = jnp.exp(jnp.where(_visible(a, b, i, j).T[:, None], scores, -jnp.inf) - lse[..., 0][:, None])
            dweights = jnp.einsum("KTH,KGQH->KTGQ", v, dout, preferred_element_type=wide)
            dscores = (weights * (dweights - delta[..., 0][:, None]) * scale).astype(q.dtype)
            add_v = jnp.einsum("KTGQ,KGQH->KTH", weights.astype(v.dtype), dout, preferred_element_type=wide)
            add_k = jnp.einsum("KTGQ,KGQH->KTH", dscores, q, preferred_element_type=wide)
            dq += jnp.einsum("KTGQ,KTH->KGQH", dscores, k, preferred_element_type=wide)
            return dq, dk.at[b, j].add(add_k), dv.at[b, j].add(add_v)

        dq, dk, dv = jax.lax.fori_loop(0, a.key_counts[b, i], keys, (jnp.zeros(q.shape, wide), *done[1:]))
        return done[0].at[b, i].set(dq.astype(q.dtype)), dk, dv

    empty = jnp.zeros(qs.shape, q.dtype), jnp.zeros(ks.shape, wide), jnp.zeros(vs.shape, wide)
    dq, dk, dv = jax.lax.fori_loop(0, B * n, queries, empty)
    return _rows(dq), _rows(dk), _rows(dv)


def _scores(q: jax.Array, k: jax.Array, wide: jnp.dtype, scale: float) -> jax.Array:
    return jnp.einsum("KGQH,KTH->KGQT", q, k, preferred_element_type=wide) * scale


def _visible(a: Ancestors, b: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
    """Which keys of block j the queries of block i see: [C, C] bool."""
    at = jnp.arange(a.block)
    query, key = i * a.block + at, j * a.block + at
    visible = (key <= query[:, None]) & (query[:, None] < a.subtree_end[b, key])
    if a.windowed:
        visible &= a.positions[b, key] >= a.lowest[b, query][:, None]
    return visible


def _blocks(x: jax.Array, C: int) -> jax.Array:
    """[B, heads ..., T, H] -> [B, n, heads ..., C, H]."""
    return jnp.moveaxis(x.reshape(*x.shape[:-2], -1, C, x.shape[-1]), -3, 1)


def _rows(x: jax.Array) -> jax.Array:
    """The inverse."""
    x = jnp.moveaxis(x, 1, -3)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])
