"""The diff on the device gives the masks of the diff on the host, bit for bit."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import masks
from lpo_jax.diff import token_diff
from tests.helpers.mask_vectors import VECTORS, edited_pair, ids

diff = jax.jit(token_diff, static_argnames="hole")
PADDING = 3  # an id that the pairs use, too


def padded(pairs, widths):
    """Pairs as `token_diff` takes them, [B, R], [B, C], [B], [B]."""
    sides = [np.full((len(pairs), width), PADDING, np.int32) for width in widths]
    lengths = np.array([[len(side) for side in pair] for pair in pairs], np.int32).T
    for row, pair in enumerate(pairs):
        for side, tokens in zip(sides, pair, strict=True):
            side[row, : len(tokens)] = tokens
    return (*sides, *lengths)


def assert_same_as_host(found, pairs, hole=1):
    for row, (rejected, chosen) in enumerate(pairs):
        for device, host in zip(found, masks.lcs(rejected, chosen, hole), strict=True):
            np.testing.assert_array_equal(device[row], np.pad(host, (0, device.shape[1] - len(host))))  # padding is never marked


def sides(tokens, size):
    return st.lists(st.tuples(st.lists(tokens, max_size=36), st.lists(tokens, max_size=33)), min_size=size, max_size=size)


@given(st.one_of(sides(st.integers(0, 12), 4), sides(st.integers(2, 4), 4)), st.integers(0, 2))
def test_random_pairs(pairs, hole):
    assert_same_as_host(diff(*padded(pairs, (36, 33)), hole=hole), pairs, hole)


def test_vectors():
    pairs = [(ids(rejected), ids(chosen)) for rejected, chosen, *_ in VECTORS.values()]
    assert_same_as_host(diff(*padded(pairs, (9, 8))), pairs)


@pytest.mark.parametrize("widths", [(1, 1), (32, 32), (33, 200), (200, 31), (1100, 60)])
def test_widths(widths):
    """One word, whole words, many words, and more than 32 words: their carries take a second level."""
    rng = random.Random(sum(widths))
    pairs = []
    for vocabulary in (2, 9, 500, 500):
        rejected, chosen = edited_pair(rng, max(widths), vocabulary, 12)
        pairs.append((rejected[: widths[0]], chosen[: widths[1]]))
        pairs.append((chosen[: widths[0]], [rng.randrange(vocabulary) for _ in range(widths[1])]))
    pairs.append(([7] * widths[0], [7] * widths[1]))
    pairs.append(([], [7] * widths[1]))
    assert_same_as_host(diff(*padded(pairs, widths)), pairs)


def test_real_pairs(real_ids):
    pairs = [pair for pair in real_ids if max(map(len, pair)) <= 256][::3]
    assert len(pairs) > 50
    assert_same_as_host(diff(*padded(pairs, (256, 256))), pairs)


def test_inside_scan_and_vmap():
    rng = random.Random(0)
    pairs = [edited_pair(rng, 30, 9, 3) for _ in range(12)]
    batch = [x.reshape(3, 2, 2, *x.shape[1:]) for x in padded(pairs, (60, 30))]

    @jax.jit
    def scanned(batch):
        return jax.lax.scan(lambda count, pair: (count + 1, jax.vmap(token_diff)(*pair)), 0, batch)[1]

    assert_same_as_host([x.reshape(12, -1) for x in scanned([jnp.array(x) for x in batch])], pairs)
