"""Attention over pages is attention by its definition, whatever lies between a text's pages; a row's numbers are its own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax.config import MeshConfig
from lpo_jax.model.attention import FAR, NO_PAGE, PAGES_AXES, KVPages, attend_dense, attend_pages, copy_pages, memory, walk
from lpo_jax.sharding import make_mesh, named

L, S, K, G, H = 2, 4, 2, 3, 5


def texts(lengths, seed=0):
    """q, k, v of each row's text, float64."""
    rng = np.random.default_rng(seed)
    longest = max(lengths)
    q = rng.normal(size=(len(lengths), longest, K, G, H))
    return q, *rng.normal(size=(2, len(lengths), longest, K, H))


def tables(lengths, places, parts=1, seed=1):
    """Pages in random order, on each of `parts` its own numbers; the least that hold the lengths."""
    rng, table = np.random.default_rng(seed), np.full((len(lengths), places), NO_PAGE, np.int32)
    each = len(lengths) // parts
    for part in range(parts):
        free = rng.permutation(each * places).tolist()
        for row in range(part * each, (part + 1) * each):
            table[row, : -(-lengths[row] // S)] = [free.pop() for _ in range(-(-lengths[row] // S))]
    return table


@partial(jax.jit, static_argnums=0)
def step(window, cache, q, k, v, positions, table):
    pairs = walk(positions, table, S, window)
    scores = memory(pairs, positions, (K, G, S), q.dtype)
    return attend_pages(q, k, v, cache, jnp.int32(1), positions, table, pairs, scores, window)[:2]


def cached(q, k, v, lengths, new, table, window, cache):
    """The attention of each row's last `new` tokens; those in front are written before, one by one where the rows' lengths differ."""

    def at(x, positions):
        return np.take_along_axis(x, np.minimum(positions, x.shape[1] - 1).reshape(*positions.shape, *(1,) * (x.ndim - 2)), axis=1)

    lengths, first = np.array(lengths), 0
    while first < max(lengths) - new:
        positions = np.broadcast_to(np.arange(first, first + 3), (len(lengths), 3))
        _, cache = step(window, cache, *(at(x, positions) for x in (q, k, v)), positions, table)
        first += 3
    positions = np.maximum(lengths[:, None] - new, 0) + np.arange(new)
    out, cache = step(window, cache, *(at(x, positions) for x in (q, k, v)), positions, table)
    return out, cache


def empty(pages):
    zeros = jnp.zeros((L, pages, K, S, H), jnp.float64)
    return KVPages(zeros, zeros)


@pytest.mark.parametrize("window", [None, 5, FAR])
@pytest.mark.parametrize("new", [1, 3, 9])
def test_it_is_the_dense_definition(new, window):
    lengths = [9, 3, 20, 13]
    with jax.enable_x64(True):
        q, k, v = texts(lengths)
        found, cache = cached(q, k, v, lengths, new, tables(lengths, 6), window, empty(24))
        positions = np.broadcast_to(np.arange(20), (4, 20))
        expected = attend_dense(q, k, v, np.full((4, 20), 20), positions, window)
        for row, length in enumerate(lengths):
            first = max(length - new, 0)
            np.testing.assert_allclose(found[row, : length - first], expected[row, first:length], rtol=1e-12, atol=1e-12)
        assert not np.asarray(cache.k[0]).any(), "another layer's pages"


@pytest.mark.parametrize("new", [1, 9])
def test_a_row_is_the_same_bits_in_any_company(new):
    """Among longer or shorter ones, or alone in the batch, on other pages."""
    lengths = [9, 3, 21, 13, 1, 17, 17, 2]
    q, k, v = (x.astype(np.float32) for x in texts(lengths))
    zeros = jnp.zeros((L, 48, K, S, H))
    found, _ = cached(q, k, v, lengths, new, tables(lengths, 6), None, KVPages(zeros, zeros))
    for row, length in list(enumerate(lengths))[::2]:
        for others in ([1] * 8, [24] * 8):
            company = [length if i == row else other for i, other in enumerate(others)]
            table = tables(company, 6, seed=row)
            if others[0] == 1:
                table[np.arange(8) != row] = NO_PAGE
            its, _ = cached(*(np.pad(x, ((0, 0), (0, 3), *((0, 0),) * (x.ndim - 2))) for x in (q, k, v)), company, new, table, None, KVPages(zeros, zeros))  # fmt: skip
            np.testing.assert_array_equal(its[row, :length], found[row, :length])
            if others[0] == 1:
                assert not np.asarray(its)[np.arange(8) != row].any(), "a row without pages gets zeros"


@pytest.mark.parametrize(("mesh", "heads"), [(MeshConfig(8, 1, 1), 2), (MeshConfig(2, 2, 2), 2), (MeshConfig(2, 1, 4), 2)], ids=str)
def test_on_a_mesh(mesh, heads):
    """Rows and pages in parts; kv heads cut, or held by all where there are too few (then nothing is cut: 3 heads per kv head)."""
    lengths = [9, 3, 20, 13, 5, 6, 7, 24]
    with jax.enable_x64(True):
        q, k, v = texts(lengths)
        expected, _ = cached(q, k, v, lengths, 1, tables(lengths, 6), None, empty(48))
        on = make_mesh(mesh)
        parts = mesh.data * mesh.fsdp
        with jax.set_mesh(on):
            cache = jax.device_put(empty(48), named(on, PAGES_AXES, (L, 48, K, S, H)))
            table = tables(lengths, 6, parts)
            found, cache = cached(q, k, v, lengths, 1, table, None, cache)
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
            source, target = np.full((2, parts), NO_PAGE, np.int32)
            source[1], target[1] = table[8 // parts, 0], 3
            copied = copy_pages(cache, jnp.array(source), jnp.array(target))
        each = 48 // parts
        wanted = np.asarray(cache.k).copy()
        wanted[:, each + 3] = wanted[:, each + table[8 // parts, 0]]
        np.testing.assert_array_equal(copied.k, wanted)


def test_only_what_is_needed_is_walked():
    """Pages up to each row's position, with a window those that it reaches; not those held for later, nor rows without pages."""
    table = np.arange(40, dtype=np.int32).reshape(4, 10)
    table[3] = NO_PAGE
    pairs = walk(jnp.array([[0], [9], [33], [5]]), jnp.array(table), S)
    assert listed(pairs) == [(0, 0), *((1, i) for i in range(3)), *((2, i) for i in range(9))]
    pairs = walk(jnp.array([[0, 1], [9, 10], [33, 34], [5, 6]]), jnp.array(table), S, 6)
    assert listed(pairs) == [(0, 0), (1, 1), (1, 2), (2, 7), (2, 8)]


def listed(pairs):
    count = int(pairs.count[0])
    return list(zip(pairs.rows[:count].tolist(), pairs.places[:count].tolist(), strict=True))
