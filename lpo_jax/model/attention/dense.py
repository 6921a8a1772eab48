"""Attention by its definition, with all scores at once: over a cache, where queries are few, and as the tests' reference."""

import jax
import jax.numpy as jnp


def attend_dense(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    subtree_end: jax.Array,
    positions: jax.Array,
    window: int | None = None,
    scale: float | None = None,
) -> jax.Array:
    """`attend` by its definition: q [B, T, K, G, H], k and v [B, T, K, H], subtree_end and positions [B, T] -> [B, T, K, G, H]."""
    query = jnp.arange(q.shape[1])[:, None]
    visible = (jnp.arange(q.shape[1]) <= query) & (query < subtree_end[:, None, :])
    if window is not None:
        visible &= positions[:, :, None] - positions[:, None, :] < window
    return _softmax_attention(q, k, v, visible, scale)


def attend_cached(
    q: jax.Array, k: jax.Array, v: jax.Array, positions: jax.Array, window: int | jax.Array | None = None, scale: float | None = None
) -> jax.Array:
    """Attention of new tokens over a cache whose slot s holds the key and value of position s.

    Args:
      q: [B, Q, K, G, H].
      k, v: [B, S, K, H]. A query sees no slot beyond its position.
      positions: [B, Q] int32, the queries' own.
      window, scale: as `ancestors` and `attend` have them.
    """
    slot, position = jnp.arange(k.shape[1]), positions[..., None]
    visible = slot <= position
    if window is not None:
        visible &= position - slot < window
    return _softmax_attention(q, k, v, visible, scale)


def _softmax_attention(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array, scale: float | None) -> jax.Array:
    """Softmax in float32 or wider; `visible` is [B, Q, keys]."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("BQKGH,BTKH->BKGQT", q, k, preferred_element_type=wide) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = jnp.where(visible[:, None, None], scores, -jnp.inf)  # every token sees itself: no row is empty
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return jnp.einsum("BKGQT,BTKH->BQKGH", weights, v)
