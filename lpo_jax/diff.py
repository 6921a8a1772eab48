"""Token diffs of padded pairs inside a jitted function: the masks m- and m+ for pairs that are made on the fly.

Dims: B pairs, R tokens of a rejected side, C tokens of a chosen side, W = ceil(R / 32) words.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

WORD = 32


def token_diff(rejected: Array, chosen: Array, rejected_len: Array, chosen_len: Array, hole: int = 1) -> tuple[Array, Array]:
    """Which tokens differ between the two sides, by a longest common subsequence.

    Several may be longest. One is taken by this rule. The longest common prefix is kept, then the longest common suffix of the rest. Of
    what remains, the last common token lies as early as possible in the rejected side, then as early as possible in the chosen side; then
    the token before it; and so on. `data_pipeline.masks.lcs` gives the same masks.

    This takes two scans of C steps over W words a pair, and two tables of C x W words. No shape depends on the data.

    Args:
      rejected, chosen: [B, R] and [B, C] token ids, padded on the right with anything.
      rejected_len, chosen_len: [B] tokens that aren't padding.
      hole: a run of unchanged tokens between changed ones is marked too, if it isn't longer than this.

    Returns:
      (m_minus, m_plus): [B, R] and [B, C] bool; padding is never marked.
    """
    return jax.vmap(functools.partial(_diff, hole=hole))(rejected, chosen, rejected_len, chosen_len)


def _diff(rejected: Array, chosen: Array, rejected_len: Array, chosen_len: Array, hole: int) -> tuple[Array, Array]:
    """`token_diff` of one pair: [R], [C], [], []."""
    # The suffix is cut off by length. The prefix stays: the rule for the rest keeps it anyway.
    shorter = jnp.minimum(rejected_len, chosen_len)
    at = jnp.arange(min(len(rejected), len(chosen)))
    prefix = _leading((rejected[: len(at)] == chosen[: len(at)]) & (at < shorter))
    suffix = _leading((rejected[rejected_len - 1 - at] == chosen[chosen_len - 1 - at]) & (at < shorter - prefix))
    in_rejected = jnp.arange(len(rejected)) < rejected_len - suffix
    in_chosen = jnp.arange(len(chosen)) < chosen_len - suffix

    # Hyyrö, "Bit-parallel LCS-length computation revisited" (2004). Bit i of row c is unset where rejected[: i + 1] has one more
    # token in common with chosen[:c] than rejected[:i] has.
    places = _pack((rejected == chosen[:, None]) & in_rejected & in_chosen[:, None])  # [C, W]

    def grow(row: Array, place: Array) -> tuple[Array, Array]:
        return _add(row, row & place) | (row & ~place), row

    last, rows = lax.scan(grow, jnp.full(places.shape[1:], ~jnp.uint32(0)), places)

    # From the last row up: the last unset bit below `end`, the n-th from the left, is the first place where n common tokens can
    # end. They are n already in the row before, or else this row's token of the chosen side is the n-th.
    def walk(state: tuple[Array, Array], before: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        row, end = state
        found = ~row & _below(end, len(row))
        bit = jnp.max(jnp.where(found != 0, WORD * jnp.arange(len(row)) + WORD - 1 - lax.clz(found).astype(jnp.int32), -1))
        common = _ones(found) > _ones(~before & _below(bit + 1, len(row)))
        return (before, jnp.where(common, bit, end)), (common, bit)

    _, (kept_chosen, place) = lax.scan(walk, (last, jnp.sum(in_rejected)), rows, reverse=True)
    kept_rejected = jnp.zeros(len(rejected), bool).at[jnp.where(kept_chosen, place, len(rejected))].set(True, mode="drop")
    return _fill_holes(in_rejected & ~kept_rejected, hole), _fill_holes(in_chosen & ~kept_chosen, hole)


def _leading(equal: Array) -> Array:
    """Length of the run of True at the front of [N]."""
    return jnp.sum(jnp.cumprod(equal.astype(jnp.int32)))


def _pack(bits: Array) -> Array:
    """[..., R] bool -> [..., W] uint32, the first bit lowest."""
    bits = jnp.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, -bits.shape[-1] % WORD)])
    bits = bits.reshape(*bits.shape[:-1], -1, WORD)
    return jnp.sum(bits << jnp.arange(WORD, dtype=jnp.uint32), -1, dtype=jnp.uint32)


def _unpack(words: Array) -> Array:
    """[W] uint32 -> [32 W] uint32, each bit a number."""
    return ((words[:, None] >> jnp.arange(WORD, dtype=jnp.uint32)) & 1).reshape(-1)


def _add(x: Array, y: Array) -> Array:
    """Sum of two numbers of W words [W], the first word lowest. A carry out of the last word is lost.

    Which words get a carry is a sum too, of two numbers with a bit for each word: the carries that arrive, and the words that pass one on.
    """
    total = x + y
    if len(total) == 1:
        return total
    arrive, passes = _pack(jnp.pad((total < x)[:-1], (1, 0))), _pack(total == ~jnp.uint32(0))
    return total + _unpack(_add(arrive, passes) ^ passes)[: len(total)]


def _below(end: Array, words: int) -> Array:
    """[W] with the bits below `end` set."""
    inside = jnp.clip(end - WORD * jnp.arange(words), 0, WORD).astype(jnp.uint32)
    return jnp.where(inside == 0, jnp.uint32(0), ~jnp.uint32(0) >> (WORD - jnp.maximum(inside, 1)))


def _ones(words: Array) -> Array:
    return jnp.sum(lax.population_count(words).astype(jnp.int32))


def _fill_holes(mask: Array, hole: int) -> Array:
    """Set the runs of up to `hole` unset positions of [N] that lie between two set ones."""
    at = jnp.arange(len(mask))
    far = len(mask) + hole + 1
    left, right = lax.cummax(jnp.where(mask, at, -far)), lax.cummin(jnp.where(mask, at, 2 * far), reverse=True)
    return right - left <= hole + 1
