"""Attention over pages on TPUs, by JAX's own Pallas kernel for decoding (`jax.experimental.pallas.ops.tpu.paged_attention`).

The kernel takes a query token of each sequence, and K and V as [heads, pages, slots, H]. It fetches a page of one head at a time, and in `KVPages`
that lies in one piece. So for the kernel each new token and kv head is a sequence of its own, with one kv head, and the pages of all layers and heads
are one row of pages: nothing is copied or laid out anew, and any number of kv heads will do. A block of several new tokens reads its text once for
each of them.

JAX's other kernel, `ragged_paged_attention`, takes several tokens a sequence, and windows. But it wants K and V interleaved slot by slot, which all
other devices would have to read with strides; it refuses some numbers of kv heads (3, 5, 6), and with a window it reads the whole text all the same.

Dims: B rows, T new tokens of each, M pages of a row at most, P pages, S slots of a page, L layers, K kv heads, G query heads per kv head, H head dim.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

from lpo_jax.model.attention.mask import LANES, platform

TOKENS = 8
"""Most new tokens of a row: more would read its text too often."""

PAGES = 4
"""That the kernel fetches at a time. It fetches so many of the shortest text, too."""

SUBLANES = 16
"""A page's slots are a multiple of this."""

INDICES = 2**17
"""Most numbers of pages that fit into a TPU's scalar memory, beside what else is there."""


def page_dim(head_dim: int) -> int:
    """How many numbers a page has for each head and slot. On TPUs whole lanes: XLA would lay out fewer in another order than Pallas reads them, and
    copy the whole cache from one to the other and back in every step."""
    return -(-head_dim // LANES) * LANES if platform() == "tpu" else head_dim


def obstacle(q: jax.Array, pages: jax.Array, table: jax.Array, window: jax.Array | int | None) -> str | None:
    """Why `attend` can't do this; None: it can.

    Args:
      q: [B, T, K, G, H].
      pages: [L, P, K, S, H].
      table: [B, M].
      window: of the layers; None: they see everything.
    """
    (_, T, K, _, H), S = q.shape, pages.shape[3]
    if platform() != "tpu":
        return "it runs on TPUs"
    if pages.dtype != jnp.bfloat16:
        return "it rounds to bfloat16"
    if window is not None:
        return "it knows no windows"
    if T > TOKENS:
        return "it would read a text once for each of many tokens"
    if H % LANES or S % SUBLANES:
        return "a page of one head isn't made of whole registers"
    if table.size * T * K > INDICES:
        return "the table doesn't fit into the scalar memory"
    return None


def attend(q: jax.Array, k: jax.Array, v: jax.Array, layer: jax.Array, positions: jax.Array, table: jax.Array, scale: float) -> jax.Array:
    """The attention of new tokens over their rows' texts, these tokens included.

    Args:
      q: [B, T, K, G, H].
      k, v: [L, P, K, S, H].
      layer: int32.
      positions: [B, T] int32, the tokens' own.
      table: [B, M] int32. What is P or more is no page.
      scale: what scores are multiplied by.

    Returns:
      [B, T, K, G, H] in q's dtype; zeros for rows without a page.
    """
    (B, T, K, G, H), (_, P, _, S, _), M = q.shape, k.shape, table.shape[1]
    some = min(PAGES, M)
    held = (table < P).sum(-1, dtype=jnp.int32)
    lengths = jnp.minimum(positions + 1, held[:, None] * S)  # [B, T]
    pages = layer * P + jnp.pad(jnp.where(table < P, table, 0), ((0, 0), (0, -M % some)))
    of_heads = pages[:, None, None] * K + jnp.arange(K, dtype=jnp.int32)[:, None]  # [B, 1, K, M]
    each = B * T * K  # sequences, as the kernel sees it
    out = paged_attention(
        (q.astype(jnp.float32) * scale).reshape(each, G, H),  # it sums up in q's dtype
        *(x.reshape(1, math.prod(x.shape[:3]), S, H) for x in (k, v)),
        jnp.broadcast_to(lengths[..., None], (B, T, K)).reshape(each),
        jnp.broadcast_to(of_heads, (B, T, K, pages.shape[1])).reshape(each, -1),
        pages_per_compute_block=some,
    )
    return out.reshape(q.shape).astype(q.dtype)
