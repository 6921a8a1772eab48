"""From logits to a token: temperature, top-k and top-p in the order of the field, and noise that belongs to (request, position).

`warp` says which distribution is drawn from, `draw` draws from it without computing it. With 151,936 tokens each pass over all logits costs
milliseconds. So a row is seen as blocks of 128 tokens: what takes many passes or much noise is done with their sums, or within a few of them.

Where a mesh cuts the vocabulary, a device keeps its part of the blocks, and sends no more than a number for each, and those blocks that are looked at.

Dims: R rows, V vocabulary, B blocks of 128 tokens; the last ones are filled up with logits of -inf.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lpo_jax.sharding import constrain, cuts

Turn = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]
"""How often a row has been drawn, the logit that it was left at, whether it is to be drawn again, what must be above it, and its token."""

BLOCK = 128
NEAR = 64
"""A filter's edge is first looked for in so many blocks, those of the largest logits. They hold the 64 most probable tokens at least."""


@flax.struct.dataclass
class Warp:
    """How each row's distribution is changed before a token is drawn: [R] each, or one number for all rows."""

    temperature: ArrayLike = 1.0  # divides the logits; 0: all the probability goes to the most probable token
    top_k: ArrayLike = 0  # keep so many of the most probable tokens; 0: all
    top_p: ArrayLike = 1.0  # then the fewest of them that hold this share of the probability; 1: all


@flax.struct.dataclass
class Site:
    """Where tokens are drawn, one a row."""

    keys: jax.Array  # [R, 2] uint32: each row's seed and sample
    positions: jax.Array  # [R] int32: each token's own
    warp: Warp

    def ahead(self, tokens: jax.Array | int) -> "Site":
        """`tokens` positions further on."""
        return Site(self.keys, self.positions + tokens, self.warp)


def warp(logits: jax.Array, by: Warp) -> jax.Array:
    """[R, V] logits as transformers' warpers leave them: divided by the temperature, then all but the `top_k` largest -inf, then all but the
    smallest set of the largest that holds `top_p` of the probability.

    What ties with the last kept is kept too, so the result doesn't depend on an order among equals; at temperature 0 the first of equals stays.
    """
    R, V = logits.shape
    x, B = _blocks(logits), _count(V)
    greedy, temperature, top_k, top_p = _settings(by, x)
    low, top = _top_k_edge(x, B, top_k), _top(x)
    weigh = lambda some: jnp.exp((jnp.where(some >= low, some, -jnp.inf) - top) / temperature)  # noqa: E731
    edge = lambda: jnp.maximum(low, _edge(x, B, weigh, top_p * _sum(weigh(x), B)))  # noqa: E731
    low = jax.lax.cond(jnp.isfinite(top_p).any(), edge, lambda: low)
    z = jnp.where(x >= low, x / temperature, -jnp.inf).reshape(R, -1)[:, :V]
    return jnp.where(greedy[:, None] & (jnp.arange(V) != _best(x)[:, None]), -jnp.inf, z)


def draw(logits: jax.Array, site: Site, stream: int = 0) -> jax.Array:
    """A token [R] int32 of each row's softmax of `warp(logits, site.warp)`, by the noise of the site and the stream, and by nothing else.

    A block is drawn first, then one of its tokens, both by Gumbel-max: noise for B + 128 numbers, not for V. Which tokens hold `top_p` need not be
    known. A drawn token is one of them if the tokens above it hold less. If not, all of them are above it, and it is drawn again from what is above.

    Streams are independent draws at one position (co-decoding: draft, fallback).
    """
    x, B = _blocks(logits), _count(logits.shape[1])
    greedy, temperature, top_k, top_p = _settings(site.warp, x)
    keys, top = _keys(site, stream), _top(x)

    def again(turn: Turn) -> jax.Array:
        return turn[2].any()

    def once(turn: Turn) -> Turn:
        i, low, open_, limit, token = turn
        left = lambda some: jnp.where((some > low) | ((some == low) & (i == 0)), some, -jnp.inf)  # noqa: E731
        masses = _sums(jnp.exp((left(x) - top) / temperature), B)
        mass = masses.sum(-1)
        limit = jnp.where(i == 0, top_p[:, 0, 0] * mass, limit)
        open_ &= (i == 0) | (mass >= limit)  # not a number: it ends here
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        block = jnp.argmax(jnp.log(masses) + _gumbel(now, jnp.zeros_like(token), B), axis=-1)
        inside = left(_block(x, block))
        at = jnp.argmax(inside / temperature + _gumbel(now, block + 1, x.shape[2])[:, None], axis=-1)
        low = jnp.where(open_[:, None, None], jnp.take_along_axis(inside, at[..., None], axis=-1), low)
        return i + 1, low, open_ & jnp.isfinite(limit), limit, jnp.where(open_, block * BLOCK + at[:, 0], token)

    start = (jnp.zeros((), jnp.int32), _top_k_edge(x, B, top_k), ~greedy, jnp.zeros_like(top[:, 0, 0]), _best(x))
    return jax.lax.while_loop(again, once, start)[-1].astype(jnp.int32)


def only(logits: jax.Array, vocab: int) -> jax.Array:
    """Logits with -inf behind the first `vocab`: rows of the output head that are padding, not tokens."""
    return jnp.where(jnp.arange(logits.shape[-1]) < vocab, logits, -jnp.inf)


def logp_of(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Log-probabilities [...] of `tokens` [...] under softmax of `logits` [..., V]."""
    return jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)


def _blocks(logits: jax.Array) -> jax.Array:
    """[R, V] -> [R, B or more, 128], as many for each device; a vocabulary of fewer is one block as it is."""
    R, V = logits.shape
    size = min(BLOCK, V)
    x = jnp.pad(logits, ((0, 0), (0, -V % (size * cuts("vocab")))), constant_values=-jnp.inf)
    return constrain(constrain(x, "batch", "vocab").reshape(R, -1, size), "batch", "vocab", None)


def _count(vocab: int) -> int:
    """B: the blocks that hold tokens."""
    return -(-vocab // BLOCK)


def _sums(weights: jax.Array, count: int) -> jax.Array:
    """Each block's sum, [R, B], on all devices that share a row: what is summed of these is summed in one order, whatever the mesh."""
    return constrain(weights.sum(-1), "batch", None)[:, :count]


def _sum(weights: jax.Array, count: int) -> jax.Array:
    """Each row's, [R, 1, 1]."""
    return _sums(weights, count).sum(-1)[:, None, None]


def _settings(by: Warp, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Whether a row is greedy [R]; and [R, 1, 1] each: its temperature, how many to keep, and which share. Inf: all. Greedy rows: 1, inf, inf."""
    temperature, top_k, top_p = (
        jnp.broadcast_to(setting, len(x)).astype(x.dtype)[:, None, None] for setting in (by.temperature, by.top_k, by.top_p)
    )
    greedy = temperature == 0
    top_k, top_p = jnp.where(greedy | (top_k <= 0), jnp.inf, top_k), jnp.where(greedy | (top_p >= 1), jnp.inf, top_p)
    return greedy[:, 0, 0], jnp.where(greedy, 1, temperature), top_k, top_p


def _top(x: jax.Array) -> jax.Array:
    """Each row's largest, [R, 1, 1]."""
    return x.max(-1).max(-1)[:, None, None]


def _best(x: jax.Array) -> jax.Array:
    """Where it is first, [R]."""
    block = jnp.argmax(x.max(-1), axis=-1)
    return block * BLOCK + jnp.argmax(_block(x, block)[:, 0], axis=-1)


def _block(x: jax.Array, which: jax.Array) -> jax.Array:
    """One block of each row, [R, 1, 128]."""
    return jnp.take_along_axis(x, which[:, None, None], axis=1)


def _keys(site: Site, stream: int) -> jax.Array:
    """[R] keys."""

    def one(key: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), position), stream)

    return jax.vmap(one)(site.keys, site.positions)


def _gumbel(keys: jax.Array, which: jax.Array, count: int) -> jax.Array:
    """Standard Gumbel noise [R, count], a function of each row's key and number. The first of it is the same for every `count`."""
    return jax.vmap(lambda key, i: jax.random.gumbel(jax.random.fold_in(key, i), (count,), jnp.float32, mode="high"))(keys, which)


def _top_k_edge(x: jax.Array, count: int, top_k: jax.Array) -> jax.Array:
    """The smallest logit of each row's `top_k`, [R, 1, 1]; -inf where that is all."""
    return jax.lax.cond(jnp.isfinite(top_k).any(), lambda: _edge(x, count, jnp.ones_like, top_k), lambda: jnp.full_like(top_k, -jnp.inf))


def _edge(x: jax.Array, count: int, weigh: Callable[[jax.Array], jax.Array], limit: jax.Array) -> jax.Array:
    """The smallest logit of each row for which the weights of all larger ones sum to less than the row's `limit`; -inf if all do. [R, 1, 1]."""

    def search(some: jax.Array) -> jax.Array:
        """No sort: bit by bit. A sum for each bit is cheaper than sorting on every device, and what is summed may be cut."""
        bits, weights = jnp.finfo(x.dtype).bits, weigh(some)

        def narrow(i: jax.Array, low: jax.Array) -> jax.Array:
            bit = jnp.ones_like(low) << (bits - 1 - i).astype(low.dtype)
            above = _sum(jnp.where(some > _unordered(low | (bit - 1), x.dtype), weights, 0), count)
            return jnp.where(above < limit, low, low | bit)

        found = _unordered(jax.lax.fori_loop(0, bits, narrow, jnp.zeros(limit.shape, f"uint{bits}")), x.dtype)
        return jnp.where(jnp.isnan(found), -jnp.inf, found)

    if count <= NEAR:
        return search(x)
    largest, which = jax.lax.top_k(x.max(-1), NEAR + 1)
    found = search(jnp.take_along_axis(x, which[:, :NEAR, None], axis=1))
    sure = (found >= largest[:, NEAR, None, None]) | jnp.isinf(limit)  # every logit above it has been looked at
    return jax.lax.cond(sure.all(), lambda: found, lambda: jnp.where(sure, found, search(x)))


def _unordered(rank: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Whole numbers -> the floats in the same order."""
    sign = jnp.ones_like(rank) << (jnp.finfo(dtype).bits - 1)
    return jax.lax.bitcast_convert_type(jnp.where(rank & sign, rank ^ sign, ~rank), dtype)
