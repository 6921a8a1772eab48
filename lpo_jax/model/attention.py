"""Attention over a token's ancestors (training) and over a cache (decoding).

Token q sees token k if and only if ``k <= q < subtree_end[k]``, and with a sliding window ``position[q] - position[k] < window``.

Dims: B batch, T tokens, Q queries, S cache slots, K kv heads, G query heads per kv head, H head dim.
"""

import jax
import jax.numpy as jnp

QUERY_CHUNK = 128


def attend(q: jax.Array, k: jax.Array, v: jax.Array, subtree_end: jax.Array, positions: jax.Array, window: int | None = None) -> jax.Array:
    """Softmax attention of every token over its ancestors and itself.

    Queries are taken in chunks, each against the keys up to its own end only: no [T, T] array exists, and the upper triangle is
    never computed. Softmax is in float32 or wider.

    Args:
      q: [B, T, K, G, H], scaled by nothing yet.
      k, v: [B, T, K, H].
      subtree_end, positions: [B, T] int32.
      window: a token sees ancestors less than so many positions away.

    Returns:
      [B, T, K, G, H] in q's dtype.
    """
    outputs = []
    for start in range(0, q.shape[1], QUERY_CHUNK):
        stop = min(start + QUERY_CHUNK, q.shape[1])
        visible = _ancestors(start, stop, subtree_end[:, :stop], positions[:, :stop], window)
        outputs.append(_softmax_attention(q[:, start:stop], k[:, :stop], v[:, :stop], visible))
    return jnp.concatenate(outputs, axis=1)


def attend_dense(
    q: jax.Array, k: jax.Array, v: jax.Array, subtree_end: jax.Array, positions: jax.Array, window: int | None = None
) -> jax.Array:
    """`attend` by its definition, with all [T, T] scores at once: the reference for tests."""
    return _softmax_attention(q, k, v, _ancestors(0, q.shape[1], subtree_end, positions, window))


def attend_cached(q: jax.Array, k: jax.Array, v: jax.Array, positions: jax.Array, window: int | None = None) -> jax.Array:
    """Attention of new tokens over a cache whose slot s holds the key and value of position s.

    Args:
      q: [B, Q, K, G, H].
      k, v: [B, S, K, H]; slots beyond a query's position are never seen.
      positions: [B, Q] int32, the queries' own.
    """
    slot, position = jnp.arange(k.shape[1]), positions[..., None]
    visible = slot <= position
    if window is not None:
        visible &= position - slot < window
    return _softmax_attention(q, k, v, visible)


def _ancestors(start: int, stop: int, subtree_end: jax.Array, positions: jax.Array, window: int | None) -> jax.Array:
    """Which of the first keys the queries start .. stop see: [B, stop - start, keys] bool."""
    query = jnp.arange(start, stop)[:, None]
    visible = (jnp.arange(subtree_end.shape[1]) <= query) & (query < subtree_end[:, None, :])
    if window is not None:
        visible &= positions[:, start:stop, None] - positions[:, None, :] < window
    return visible


def _softmax_attention(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("BQKGH,BTKH->BKGQT", q, k, preferred_element_type=wide) * q.shape[-1] ** -0.5
    scores = jnp.where(visible[:, None, None], scores, -jnp.inf)  # every token sees itself: no row is empty
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return jnp.einsum("BKGQT,BTKH->BQKGH", weights, v)
