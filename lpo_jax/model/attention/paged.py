"""Attention of new tokens over a cache of pages.

A page has slots for S tokens' keys and values. A row of the batch lists in `table` the pages that its text lies on: position p is in slot p % S
of page table[row, p // S]. So a text takes as many pages as it is long, in any order, and rows with a common beginning list the same pages.

A row and a page that its tokens see are a pair. The pairs (`Walk`) are counted on the device, a row's in the order of its text, and walked C at a
time by loops as long as there are pairs. So the time and the bytes of a step follow from the texts, and one program serves all of them. With few
tokens a row a first loop finds each token's highest score, and a second one adds up weighted values. With the maximum known, each row's pages are
added one by one in their order, wherever the C at a time begin: what a row gets doesn't depend on the others. With many tokens a row, as in a
prefill, one pair is enough to do at a time, and its row's sums so far are rescaled where it has a higher score.

On a mesh, rows and pages lie along the batch's axes. Each of their parts has its own pages, and a table has their numbers within the part.

Dims: B rows, T new tokens of each, M pages of a row at most, P pages, S slots of a page, W pairs at most, C pairs at a time, L layers, K kv heads,
G query heads per kv head, H head dim.
"""

from collections.abc import Sequence
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lpo_jax.model.attention import paged_tpu
from lpo_jax.model.attention.dispatch import Layout
from lpo_jax.sharding import spec

NO_PAGE = 2**30
"""In a table: there is no page. What is written there is dropped."""

PAGES_AXES = ("layers", "batch", "kv_heads", None, "head_dim")

_TOKENS_AT_A_TIME = 8  # C * T


@flax.struct.dataclass
class KVPages:
    """Keys and values of texts, by pages. Of H the last numbers may be none of the model's, and zeros: see `paged_tpu.page_dim`."""

    k: jax.Array  # [L, P, K, S, H]
    v: jax.Array  # [L, P, K, S, H]

    @property
    def slots(self) -> int:
        """Of a page."""
        return self.k.shape[3]


@flax.struct.dataclass
class Walk:
    """The pairs of rows and pages, on a mesh one list for each part of the rows."""

    rows: jax.Array  # [W] int32; behind the last pair B
    places: jax.Array  # [W] int32: which of the row's pages
    count: jax.Array  # [1] int32: how many pairs


def walk(positions: jax.Array, table: jax.Array, slots: int, window: int | None = None) -> Walk:
    """The pairs that tokens at `positions` [B, T] need of the pages in `table` [B, M]."""
    mesh = jax.sharding.get_abstract_mesh()

    def local(positions: jax.Array, table: jax.Array) -> Walk:
        held = (table < NO_PAGE).sum(-1, dtype=jnp.int32)
        end = jnp.minimum(positions.max(-1) // slots + 1, held)
        first = jnp.zeros_like(end) if window is None else jnp.clip((positions.min(-1) - window + 1) // slots, 0, end)
        ends = jnp.cumsum(end - first)
        at = jnp.arange(-(-table.size // _at_a_time(positions)) * _at_a_time(positions), dtype=jnp.int32)
        rows = jnp.searchsorted(ends, at, side="right").astype(jnp.int32)
        return Walk(rows, at + (end - ends).at[rows].get(mode="clip"), ends[-1:])

    if mesh.empty:
        return local(positions, table)
    rows = Layout.rows_of(len(positions))
    return jax.shard_map(local, in_specs=(rows, rows), out_specs=rows, check_vma=False)(positions, table)


def memory(pairs: Walk, positions: jax.Array, shape: Sequence[int], dtype: jnp.dtype) -> jax.Array | None:
    """For scores, for all layers one after the other: as large as all rows' longest texts need, though only what pairs use is touched. None: it
    needs none.

    Args:
      shape: [K, G, S].
      dtype: of the queries.
    """
    K, G, S = shape
    if _at_a_time(positions) == 1:
        return None
    return jnp.zeros((len(pairs.rows), K, G, positions.shape[1], S), jnp.promote_types(dtype, jnp.float32))


def attend_pages(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: KVPages,
    layer: jax.Array,
    positions: jax.Array,
    table: jax.Array,
    pairs: Walk,
    scores: jax.Array | None,
    window: jax.Array | int | None = None,
    scale: float | None = None,
) -> tuple[jax.Array, KVPages, jax.Array | None]:
    """Write new tokens' keys and values into a layer's pages, in place; then the attention of these tokens over their rows' texts.

    Args:
      q: [B, T, K, G, H].
      k, v: [B, T, K, H].
      layer: int32.
      positions: [B, T] int32, the new tokens' own. A token sees no position behind its own.
      table: [B, M] int32, `NO_PAGE` where there is none. A row without a page gets zeros.
      pairs: `walk` of these positions and this table, with this window.
      scores: `memory` for them, whatever it holds.
      window, scale: as `ancestors` and `attend` have them.

    Returns:
      [B, T, K, G, H] in q's dtype, the cache, and the memory.
    """
    heads = Layout(q, k)
    rows, pages = heads.rows, PartitionSpec(None, *heads.kv[:1], *heads.kv[2:3])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    window = None if window is None else jnp.asarray(window)

    def local(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        cache: KVPages,
        layer: jax.Array,
        positions: jax.Array,
        table: jax.Array,
        pairs: Walk,
        scores: jax.Array | None,
        window: jax.Array | None,
    ) -> tuple[jax.Array, KVPages, jax.Array | None]:
        cache, H = _write(k, v, cache, layer, positions, table), q.shape[-1]
        q = _wide(q, cache)
        if paged_tpu.obstacle(q, cache.k, table, window) is None:
            out = paged_tpu.attend(q, cache.k, cache.v, layer, positions, table, scale)
        else:
            out, scores = _attend(q, cache, layer, positions, table, pairs, scores, window, scale)
        return out[..., :H], cache, scores

    if not heads.mesh.empty:
        local = jax.shard_map(
            local,
            in_specs=(heads.q, heads.kv, heads.kv, pages, PartitionSpec(), rows, rows, rows, heads.scores, PartitionSpec()),
            out_specs=(heads.q, pages, heads.scores),
            check_vma=False,
        )
    return local(q, k, v, cache, layer, positions, table, pairs, scores, window)


def copy_pages(cache: KVPages, source: jax.Array, target: jax.Array) -> KVPages:
    """Copy page `source` of each part of the pages to its page `target`, [parts] int32 each; not where that is `NO_PAGE`."""

    def local(cache: KVPages, source: jax.Array, target: jax.Array) -> KVPages:
        return jax.tree.map(lambda x: x.at[:, target].set(x.at[:, source].get(mode="clip"), mode="drop"), cache)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(cache, source, target)
    parts, cut = Layout.rows_of(len(source)), spec(PAGES_AXES, cache.k.shape, dict(mesh.shape))
    return jax.shard_map(local, in_specs=(cut, parts, parts), out_specs=cut, check_vma=False)(cache, source, target)


def _write(k: jax.Array, v: jax.Array, cache: KVPages, layer: jax.Array, positions: jax.Array, table: jax.Array) -> KVPages:
    page = table.at[jnp.arange(len(table))[:, None], positions // cache.slots].get(mode="fill", fill_value=NO_PAGE)
    heads, slot = jnp.arange(k.shape[2]), positions[..., None] % cache.slots
    # A head at a time: then a scatter keeps the layout in which pages are read. With windows of all heads TPUs would copy the cache into another.
    put = lambda old, new: old.at[layer, page[..., None], heads, slot].set(_wide(new, cache).astype(old.dtype), mode="drop")  # noqa: E731
    return KVPages(put(cache.k, k), put(cache.v, v))


def _wide(x: jax.Array, cache: KVPages) -> jax.Array:
    """[..., H] with zeros behind, as wide as a page."""
    return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, cache.k.shape[-1] - x.shape[-1]),))


def _attend(
    q: jax.Array,
    cache: KVPages,
    layer: jax.Array,
    positions: jax.Array,
    table: jax.Array,
    pairs: Walk,
    scores: jax.Array | None,
    window: jax.Array | None,
    scale: float,
) -> tuple[jax.Array, jax.Array | None]:
    (B, T, K, G, H), (L, P, _, S, _), C = q.shape, cache.k.shape, _at_a_time(positions)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    # TPUs round float32 factors to bfloat16 where they may, and would round the whole cache for it, in every layer.
    product = partial(jnp.einsum, precision=None if q.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST, preferred_element_type=wide)
    ks, vs = (x.reshape(L * P, K, S, H) for x in (cache.k, cache.v))
    qs = q.transpose(0, 2, 3, 1, 4)

    def some(x: jax.Array, i: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, i * C, C)

    def at(i: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """C pairs: rows, which of their pages, and these among all layers' pages."""
        rows, places = some(pairs.rows, i), some(pairs.places, i)
        return rows, places, layer * P + jnp.minimum(table.at[rows, places].get(mode="clip"), P - 1)

    def scored(i: jax.Array) -> jax.Array:
        """Their scores, [C, K, G, T, S]."""
        rows, places, pages = at(i)
        key, query = places[:, None, None] * S + jnp.arange(S), positions.at[rows].get(mode="clip")[..., None]
        visible = key <= query
        if window is not None:
            visible &= query - key < window
        scores = product("CKGTH,CKSH->CKGTS", qs.at[rows].get(mode="clip"), ks[pages]) * scale
        return jnp.where(visible[:, None, None], scores, -jnp.inf)

    def summed(i: jax.Array, scores: jax.Array, top: jax.Array, out: jax.Array, total: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`out` and `total` with the weighted values of these pairs, and their weights."""
        rows, _, pages = at(i)
        weights = jnp.exp(scores - top.at[rows].get(mode="clip")[..., None])
        seen = product("CKGTS,CKSH->CKGTH", weights.astype(q.dtype), vs[pages])
        return out.at[rows].add(seen, mode="drop"), total.at[rows].add(weights.sum(-1), mode="drop")

    def one(i: jax.Array, sums: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        out, total, top = sums
        row, scores = pairs.rows[i], scored(i)
        higher = top.at[row].max(scores[0].max(-1))
        shrink = jnp.exp(top[row] - higher[row])
        out, total = out.at[row].multiply(shrink[..., None]), total.at[row].multiply(shrink)
        return *summed(i, scores, higher, out, total), higher

    def look(i: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        scores = scored(i)
        top = found[1].at[some(pairs.rows, i)].max(scores.max(-1), mode="drop")
        return jax.lax.dynamic_update_slice_in_dim(found[0], scores, i * C, 0), top

    nothing = jnp.zeros((B, K, G, T), wide)
    out, lowest = jnp.zeros((B, K, G, T, H), wide), jnp.full_like(nothing, jnp.finfo(wide).min)
    steps = (pairs.count[0] + C - 1) // C
    if scores is None:
        out, total, _ = jax.lax.fori_loop(0, steps, one, (out, nothing, lowest))
    else:
        scores, top = jax.lax.fori_loop(0, steps, look, (scores, lowest))
        out, total = jax.lax.fori_loop(0, steps, lambda i, sums: summed(i, some(scores, i), top, *sums), (out, nothing))
    out = out / jnp.where(total == 0, 1, total)[..., None]
    return out.transpose(0, 3, 1, 2, 4).astype(q.dtype), scores


def _at_a_time(positions: jax.Array) -> int:
    return max(1, _TOKENS_AT_A_TIME // positions.shape[1])
