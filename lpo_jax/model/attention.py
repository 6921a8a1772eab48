"""Ancestor attention: token q sees token k if and only if ``k <= q < subtree_end[k]``.

Dims: B batch, T tokens, K kv heads, G query heads per kv head, H head dim.
"""

import jax
import jax.numpy as jnp

QUERY_CHUNK = 128


def attend(q: jax.Array, k: jax.Array, v: jax.Array, subtree_end: jax.Array) -> jax.Array:
    """Softmax attention of every token over its ancestors and itself.

    Queries are taken in chunks, each against the keys up to its own end only: no [T, T] array exists, and the upper triangle is
    never computed. Softmax is in float32 or wider.

    Args:
      q: [B, T, K, G, H], scaled by nothing yet.
      k, v: [B, T, K, H].
      subtree_end: [B, T] int32.

    Returns:
      [B, T, K, G, H] in q's dtype.
    """
    tokens = q.shape[1]
    outputs = []
    for start in range(0, tokens, QUERY_CHUNK):
        stop = min(start + QUERY_CHUNK, tokens)
        outputs.append(_attend_dense(q[:, start:stop], k[:, :stop], v[:, :stop], subtree_end[:, :stop], start))
    return jnp.concatenate(outputs, axis=1)


def attend_dense(q: jax.Array, k: jax.Array, v: jax.Array, subtree_end: jax.Array) -> jax.Array:
    """`attend` by its definition, with all [T, T] scores at once: the reference for tests."""
    return _attend_dense(q, k, v, subtree_end, 0)


def _attend_dense(q: jax.Array, k: jax.Array, v: jax.Array, subtree_end: jax.Array, first_query: int) -> jax.Array:
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("BQKGH,BTKH->BKGQT", q, k, preferred_element_type=wide) * q.shape[-1] ** -0.5
    query = first_query + jnp.arange(q.shape[1])[:, None]
    visible = (jnp.arange(k.shape[1]) <= query) & (query < subtree_end[:, None, :])  # [B, Q, T]
    scores = jnp.where(visible[:, None, None], scores, -jnp.inf)  # every token sees itself: no row is empty
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return jnp.einsum("BKGQT,BTKH->BQKGH", weights, v)
