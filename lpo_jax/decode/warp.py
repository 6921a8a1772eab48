"""From logits to a token: temperature, top-k and top-p in the order of the field, and noise that belongs to (request, position).

Dims: R rows, V vocabulary.
"""

import jax
import jax.numpy as jnp


def warp(logits: jax.Array, temperature: float, top_k: int = 0, top_p: float = 1.0) -> jax.Array:
    """[..., V] logits as transformers' warpers leave them: divided by `temperature`, then all but the `top_k` largest -inf, then all but the
    smallest set of the largest that holds `top_p` of the probability. 0 and 1 switch the filters off.

    What ties with the last kept is kept too, so the result doesn't depend on an order among equals.
    """
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        logits = _keep_largest(logits, jnp.ones_like(logits), top_k)
    if top_p < 1:
        logits = _keep_largest(logits, jax.nn.softmax(logits, axis=-1), top_p)
    return logits


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


def draw(warped: jax.Array, keys: jax.Array, positions: jax.Array, stream: int = 0) -> jax.Array:
    """[R, V] logits -> a token [R] of each row's softmax, by the noise of its key and position (Gumbel-max)."""
    return jnp.argmax(warped + gumbel(keys, positions, stream, warped.shape[-1]), axis=-1)


def logp_of(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Log-probabilities [R] of `tokens` [R] under softmax of `logits` [R, V]."""
    return jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)


def _keep_largest(logits: jax.Array, weights: jax.Array, limit: float) -> jax.Array:
    """Keep a logit if the weights of the logits above it sum to less than `limit`: the others become -inf.

    No sort: the smallest kept value is searched bit by bit. 32 sums over V are cheaper than sorting V on every device, and V may be cut.
    """
    rank = _ordered(logits.astype(jnp.float32))

    def narrow(i: jax.Array, low: jax.Array) -> jax.Array:
        bit = jnp.uint32(1) << (31 - i).astype(jnp.uint32)
        above = jnp.where(rank > (low | (bit - 1))[..., None], weights, 0).sum(-1)
        return jnp.where(above < limit, low, low | bit)

    smallest = jax.lax.fori_loop(0, 32, narrow, jnp.zeros(logits.shape[:-1], jnp.uint32))
    return jnp.where(rank >= smallest[..., None], logits, -jnp.inf)


def _ordered(x: jax.Array) -> jax.Array:
    """float32 -> uint32 in the same order."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
