"""Attention by its definition, with all scores at once: the tests' reference."""

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
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("BQKGH,BTKH->BKGQT", q, k, preferred_element_type=wide) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = jnp.where(visible[:, None, None], scores, -jnp.inf)  # every token sees itself: no row is empty
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return jnp.einsum("BKGQT,BTKH->BQKGH", weights, v)
