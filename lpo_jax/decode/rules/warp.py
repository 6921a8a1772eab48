"""From logits to a token: temperature, top-k and top-p in the order of the field, and noise that belongs to (request, position).

Dims: R rows, V vocabulary.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


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
    temperature, top_k, top_p = (jnp.broadcast_to(x, (R,)) for x in (by.temperature, by.top_k, by.top_p))
    greedy = temperature == 0
    z = logits / jnp.where(greedy, 1, temperature)[:, None].astype(logits.dtype)
    few, likely = ~greedy & (top_k > 0), ~greedy & (top_p < 1)
    z = jax.lax.cond(few.any(), lambda z: _keep_largest(z, jnp.ones_like(z), jnp.where(few, top_k, V)), lambda z: z, z)
    z = jax.lax.cond(
        likely.any(), lambda z: _keep_largest(z, jax.nn.softmax(z, axis=-1), jnp.where(likely, top_p, jnp.inf)), lambda z: z, z
    )
    only_best = jnp.where(jnp.arange(V) == jnp.argmax(z, axis=-1)[:, None], z, -jnp.inf)
    return jnp.where(greedy[:, None], only_best, z)


def gumbel(keys: jax.Array, positions: jax.Array, stream: int, vocab: int) -> jax.Array:
    """Standard Gumbel noise [R, V], a function of each row's key ([R, 2] uint32), position ([R] int32) and stream, and of nothing else.

    A token's noise is the same for every `vocab` that has it. Streams are independent draws at one position (co-decoding: draft, fallback).
    """

    def one(key: jax.Array, position: jax.Array) -> jax.Array:
        at = jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), position)
        return jax.random.gumbel(jax.random.fold_in(at, stream), (vocab,), jnp.float32)

    return jax.vmap(one)(keys, positions)


def only(logits: jax.Array, vocab: int) -> jax.Array:
    """Logits with -inf behind the first `vocab`: rows of the output head that are padding, not tokens."""
    return jnp.where(jnp.arange(logits.shape[-1]) < vocab, logits, -jnp.inf)


def draw(warped: jax.Array, site: Site, stream: int = 0) -> jax.Array:
    """[R, V] logits that `site.warp` has warped -> a token [R] int32 of each row's softmax, by the noise of the site (Gumbel-max)."""
    noisy = lambda: jnp.argmax(warped + gumbel(site.keys, site.positions, stream, warped.shape[-1]), axis=-1)  # noqa: E731
    best = lambda: jnp.argmax(warped, axis=-1)  # noqa: E731
    return jax.lax.cond(jnp.all(site.warp.temperature == 0), best, noisy).astype(jnp.int32)


def logp_of(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Log-probabilities [...] of `tokens` [...] under softmax of `logits` [..., V]."""
    return jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)


def _keep_largest(logits: jax.Array, weights: jax.Array, limit: jax.Array) -> jax.Array:
    """Keep a logit if the weights of the logits above it sum to less than its row's `limit` ([R]): the others become -inf.

    No sort: the smallest kept value is searched bit by bit. 32 sums over V are cheaper than sorting V on every device, and V may be cut.
    """
    rank = _ordered(logits.astype(jnp.float32))

    def narrow(i: jax.Array, low: jax.Array) -> jax.Array:
        bit = jnp.uint32(1) << (31 - i).astype(jnp.uint32)
        above = jnp.where(rank > (low | (bit - 1))[:, None], weights, 0).sum(-1)
        return jnp.where(above < limit, low, low | bit)

    smallest = jax.lax.fori_loop(0, 32, narrow, jnp.zeros(logits.shape[:1], jnp.uint32))
    return jnp.where(rank >= smallest[:, None], logits, -jnp.inf)


def _ordered(x: jax.Array) -> jax.Array:
    """float32 -> uint32 in the same order."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
