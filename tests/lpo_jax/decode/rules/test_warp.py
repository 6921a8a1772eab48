"""What is drawn: the filters against transformers and a full sort, draws against the filtered distribution, and what a draw depends on."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lpo_jax.config import MeshConfig
from lpo_jax.decode.rules.warp import BLOCK, NEAR, Site, Warp, draw, logp_of, warp
from lpo_jax.plan import hlo
from lpo_jax.sharding import make_mesh, named
from tests.helpers.sampling import VOCAB, processors

WARPS = [(1.0, 0, 1.0), (0.4, 0, 0.95), (0.5, 2, 1.0), (1.3, 7, 0.6), (0.7, 0, 0.01), (2.0, 1, 0.9), (1.0, 97, 0.999)]
MANY = 9000  # tokens: more blocks than those in which an edge is looked for first

warped = jax.jit(warp)
drawn = jax.jit(lambda logits, site, stream=0: draw(logits, site, stream))


def sites(count, by, seed=7):
    """As many, 100 positions of each key."""
    at = np.arange(count)
    keys = np.stack([np.full(count, seed), at // 100], axis=1).astype(np.uint32)
    return Site(jnp.asarray(keys), jnp.asarray(at % 100, jnp.int32), by)


def sorted_kept(logits, temperature, top_k, top_p):
    """Which are kept [V], by sorting all of them, in numpy and float64."""
    if temperature == 0:
        return np.arange(len(logits)) == np.argmax(logits)
    kept = logits > -np.inf
    if 0 < top_k < len(logits):
        kept &= logits >= np.sort(logits)[::-1][top_k - 1]
    if top_p < 1:
        p = scipy.special.softmax(np.where(kept, logits, -np.inf) / temperature)
        order = np.argsort(-p)
        fewest = 1 + np.searchsorted(np.cumsum(p[order]), top_p)
        kept &= logits >= logits[order[fewest - 1]]
    return kept


# --- The filters.


@pytest.mark.parametrize("settings", WARPS)
def test_warped_logits_are_transformers(settings):
    logits = np.random.default_rng(0).normal(0, 3, (40, VOCAB)).astype(np.float32)
    theirs = processors(*settings)(None, torch.tensor(logits)).numpy()
    ours = np.asarray(warped(logits, Warp(*settings)))
    np.testing.assert_array_equal(np.isinf(ours), np.isinf(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_filtering_comes_after_temperature():
    """The fixture of CoSec's specification: q = .1 .2 .6 .1."""
    q = jnp.log(jnp.array([0.1, 0.2, 0.6, 0.1]))
    for settings, expected in {
        (0.5, 0, 1.0): [0.023810, 0.095238, 0.857143, 0.023810],
        (0.5, 0, 0.95): [0, 0.1, 0.9, 0],
        (0.5, 2, 1.0): [0, 0.1, 0.9, 0],
        (0.4, 0, 0.95): [0, 0.060283, 0.939717, 0],
    }.items():
        np.testing.assert_allclose(jax.nn.softmax(warp(q[None], Warp(*settings)))[0], expected, atol=1e-6)
    before = warp(warp(q[None], Warp(1.0, 0, 0.95)), Warp(0.4))  # the other order keeps all
    assert np.isfinite(before).all()


def test_ties_are_kept_together():
    tied = np.array([[1.0, 2.0, 1.0, 1.0]], np.float32)
    np.testing.assert_array_equal(np.isfinite(warp(tied, Warp(1.0, 2))), [[True, True, True, True]])
    np.testing.assert_array_equal(np.isfinite(warp(tied, Warp(1.0, 0, 0.4))), [[False, True, False, False]])
    np.testing.assert_array_equal(np.isfinite(warp(tied[:, 2:], Warp(0.0))), [[True, False]])


settings_of = st.tuples(
    st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    st.sampled_from([0, 1, 2, 50, 64, 65, 200, 3000, MANY, 10**6]),
    st.sampled_from([1e-12, 0.1, 0.5, 0.95, 0.9999, 1.0]),
)
logits_of = st.tuples(
    st.integers(0, 2**32 - 1), st.sampled_from([0.01, 1.0, 5.0]), st.sampled_from([None, 0.5, 2.0]), st.sampled_from([0, 0.3, 0.999])
)


@pytest.mark.parametrize("vocab", [50, MANY])
@given(given_logits=st.lists(logits_of, min_size=3, max_size=3), settings=st.lists(settings_of, min_size=3, max_size=3))
@example([(0, 0.01, None, 0)] * 3, [(1.0, 0, 0.95), (1.0, 3000, 0.5), (0.0, 0, 1.0)])  # flat: no few blocks hold the share
@example([(0, 5.0, 2.0, 0)] * 3, [(1.0, 64, 1.0), (1.0, 65, 1.0), (1.0, 0, 0.5)])  # many ties
def test_what_is_kept_is_what_a_full_sort_keeps(vocab, given_logits, settings):
    """Rows of all kinds side by side: flat or peaked, with ties and with logits of -inf. And what is drawn has been kept."""
    rows = []
    for seed, scale, grid, none in given_logits:
        rng = np.random.default_rng(seed)
        row = rng.normal(0, scale, vocab)
        row = row if grid is None else np.round(row / grid) * grid
        row[rng.random(vocab) < none] = -np.inf
        row[rng.integers(vocab)] = 1.0
        rows.append(row)
    rows = np.stack(rows)
    by = [np.array(x) for x in zip(*settings, strict=True)]
    with jax.enable_x64(True):
        ours = np.asarray(warped(rows, Warp(*by)))
        tokens = np.asarray(drawn(rows, sites(3, Warp(*by), given_logits[0][0])))
    assert ours.dtype == np.float64
    for row, mine, token, (temperature, top_k, top_p) in zip(rows, ours, tokens, settings, strict=True):
        sets = [sorted_kept(row, temperature, top_k, p) for p in (top_p, top_p * (1 - 1e-12), top_p * (1 + 1e-12))]  # sums are rounded
        assert any(np.array_equal(np.isfinite(mine), kept) for kept in sets)
        np.testing.assert_allclose(mine[np.isfinite(mine)], row[np.isfinite(mine)] / (temperature or 1))
        assert np.isfinite(mine[token])


# --- The draws.


def compare(logits, settings, draws=6000):
    """A chi-square test of so many draws from one row; what few draws expect is one class."""
    by, row = Warp(*settings), np.asarray(logits)
    tokens = np.asarray(drawn(jnp.broadcast_to(row, (draws, len(row))), sites(draws, by)))
    z = np.where(sorted_kept(row, *settings), row.astype(np.float64) / settings[0], -np.inf)
    expected, counts = scipy.special.softmax(z) * draws, np.bincount(tokens, minlength=len(row))
    assert counts[expected == 0].sum() == 0
    rare = expected < 10
    classes = [np.append(x[~rare], x[rare].sum()) for x in (counts, expected)]
    classes = [x[classes[1] > 0] for x in classes]
    return scipy.stats.chisquare(*classes).pvalue if len(classes[0]) > 1 else 1.0


@pytest.mark.parametrize(
    "settings",
    [(1.0, 0, 1.0), (0.7, 0, 0.9), (1.5, 0, 0.3), (1.0, 40, 1.0), (1.3, 40, 0.8), (1.0, 0, 1e-9), (1.0, 1, 0.9), (5.0, 5, 1.0)],
    ids=str,
)
def test_draws_have_the_filtered_distribution(settings):
    """Of 300 tokens in three blocks, among them ties and some that can't be."""
    rng = np.random.default_rng(1)
    logits = np.round(rng.normal(0, 2, 300) * 4).astype(np.float32) / 4
    logits[rng.random(300) < 0.2] = -np.inf
    assert compare(logits, settings) > 1e-3


def test_the_comparison_sees_another_distribution():
    logits = np.random.default_rng(1).normal(0, 2, 300).astype(np.float32)
    tokens = np.asarray(drawn(jnp.broadcast_to(logits, (10_000, 300)), sites(10_000, Warp(1.0))))
    expected = scipy.special.softmax(logits / 1.1)
    often = expected > 1e-3
    classes = [np.append(x[often], x[~often].sum()) for x in (np.bincount(tokens, minlength=300), expected / expected.sum() * 10_000)]
    assert scipy.stats.chisquare(*classes).pvalue < 1e-6


@pytest.mark.parametrize("settings", [(1.0, 0, 1.0), (1.0, 0, 0.5), (1.0, 100, 0.9)], ids=str)
def test_draws_from_many_tokens(settings):
    """Flat: no few blocks hold much of it. The draws' ranks are compared, in 40 classes."""
    draws, logits = 600, np.random.default_rng(2).normal(0, 1, MANY).astype(np.float32)
    tokens = np.asarray(drawn(jnp.broadcast_to(logits, (draws, MANY)), sites(draws, Warp(*settings))))
    p = scipy.special.softmax(np.where(sorted_kept(logits, *settings), logits.astype(np.float64), -np.inf))
    order = np.argsort(-p)
    classes = np.empty(MANY, int)
    classes[order] = np.minimum(np.cumsum(p[order]) - p[order] / 2, 1 - 1e-9) * 40 // 1
    assert (p[tokens] > 0).all()
    counts, expected = np.bincount(classes[tokens], minlength=40), np.bincount(classes, p, 40)
    there = expected > 0
    assert scipy.stats.chisquare(counts[there], expected[there] / expected.sum() * draws).pvalue > 1e-3
    inside = np.bincount(tokens % 128 // 16, minlength=8), np.bincount(np.arange(MANY) % 128 // 16, p, 8) * draws  # places in the blocks
    assert scipy.stats.chisquare(*inside).pvalue > 1e-3


def test_streams_positions_samples_and_seeds_are_independent():
    """Pairs of draws that differ in one of them, in a table of two ways."""
    logits = jnp.broadcast_to(jnp.asarray(np.random.default_rng(3).normal(0, 1, 260).astype(np.float32)), (2000, 260))
    by = Warp(1.0, 0, 0.9)
    here = sites(2000, by)
    others = {
        "stream": (here, 1),
        "position": (here.ahead(100), 0),
        "sample": (Site(here.keys + jnp.array([0, 1000], jnp.uint32), here.positions, by), 0),
        "seed": (Site(here.keys + jnp.array([1, 0], jnp.uint32), here.positions, by), 0),
    }
    first = np.asarray(drawn(logits, here)) % 8
    assert (np.asarray(drawn(logits, here)) % 8 == first).all()
    for name, (site, stream) in others.items():
        table = np.zeros((8, 8))
        np.add.at(table, (first, np.asarray(drawn(logits, site, stream)) % 8), 1)
        assert scipy.stats.chi2_contingency(table).pvalue > 1e-3, name


def test_rare_tokens_are_drawn_as_often_as_they_should():
    """2,000 tokens of one part in ten million each beside one that has nearly all."""
    logits = np.full(2001, np.log(1e-7), np.float32)
    logits[1000] = 0
    draws = 8000
    many = np.asarray(drawn(jnp.broadcast_to(logits, (draws, 2001)), sites(draws, Warp(1.0))))
    assert scipy.stats.binomtest(int((many != 1000).sum()), draws, 2e-4).pvalue > 1e-3


# --- What a draw depends on.


def mixed(rows, vocab, seed=0):
    """Logits and settings of all kinds."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (rows, vocab)).astype(np.float32) * rng.choice([0.01, 1, 4], rows)[:, None].astype(np.float32)
    return logits, Warp(rng.choice([0, 0.5, 1, 1.4], rows), rng.choice([0, 0, 5, 300], rows), rng.choice([1, 0.9, 0.4], rows))


def test_a_row_does_not_depend_on_its_company():
    logits, by = mixed(24, MANY)
    site = sites(24, by)
    together = np.asarray(drawn(logits, site))
    for row in range(4):
        alone = jax.tree.map(lambda x, at=row: x[at : at + 1], site)
        assert np.asarray(drawn(logits[row : row + 1], alone)).tolist() == [together[row]]
    order = np.random.default_rng(0).permutation(24)
    np.testing.assert_array_equal(drawn(logits[order], jax.tree.map(lambda x: x[order], site)), together[order])


def test_padding_behind_the_vocabulary_changes_nothing():
    logits, by = mixed(24, 300)
    padded = np.pad(logits, ((0, 0), (0, 400)), constant_values=-np.inf)
    np.testing.assert_array_equal(drawn(padded, sites(24, by)), drawn(logits, sites(24, by)))


@pytest.mark.parametrize(
    ("mesh", "vocab"), [(MeshConfig(8, 1, 1), 1024), (MeshConfig(2, 2, 2), 9008), (MeshConfig(1, 1, 8), 1024)], ids=str
)
def test_eight_devices_draw_what_one_does(mesh, vocab):
    """9,008 tokens are cut across a block."""
    logits, by = mixed(16, vocab)
    site, on = sites(16, by), make_mesh(mesh)
    with jax.set_mesh(on):
        cut = jax.device_put(logits, named(on, ("batch", "vocab"), logits.shape))
        assert (cut.sharding.shard_shape(cut.shape)[1] < vocab) == (mesh.tensor > 1)
        tokens, filtered = jax.jit(draw)(cut, site), jax.jit(warp)(cut, by)
    np.testing.assert_array_equal(tokens, drawn(logits, site))
    np.testing.assert_array_equal(np.isfinite(filtered), np.isfinite(warped(logits, by)))


def test_a_vocabulary_that_is_cut_stays_where_it_is():
    """Two devices whose halves end within a block send each other a number for each block, and the blocks that are looked at, not their logits."""
    rows, on = 4, make_mesh(MeshConfig(1, 1, 2), jax.devices()[:2])
    logits = jax.ShapeDtypeStruct((rows, 151_936), jnp.float32, sharding=named(on, ("batch", "vocab"), (rows, 151_936)))
    with jax.set_mesh(on):
        text = jax.jit(draw).lower(logits, sites(rows, mixed(rows, 1)[1])).compile().as_text()
    sent = hlo.traffic(text, 2).sent
    assert 0 < sum(sent.values()) < 4 * logits.size / 100, sent
    collectives = re.findall(r"= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", text)
    assert len(collectives) > 5 and max(hlo.array_bytes(each, anywhere=True) for each in collectives) <= 4 * rows * NEAR * BLOCK


def test_float64_tells_apart_what_float32_cannot():
    logits = np.array([[0, 1, 1 + 1e-12, 1 + 0.5e-12]])
    with jax.enable_x64(True):
        for settings in ((0.0, 0, 1.0), (1.0, 1, 1.0), (1.0, 0, 1e-9), (1.0, 1, 0.5)):
            assert drawn(logits, sites(1, Warp(*settings))).tolist() == [2]
            assert np.isfinite(warped(logits, Warp(*settings))).tolist() == [[False, False, True, False]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_end_a_draw(value):
    """With some token of the vocabulary, whose log-probability isn't one either: that ends the run."""
    for settings in ((0.0, 0, 1.0), (1.0, 0, 0.9), (1.0, 3, 0.9), (0.7, 0, 1.0)):
        for logits in (
            np.full((1, 200), value, np.float32),
            np.where(np.arange(200) == 3, value, np.arange(200.0, dtype=np.float32))[None],
        ):
            (token,) = drawn(logits, sites(1, Warp(*settings))).tolist()
            assert 0 <= token < 200
            assert value == -np.inf or not np.isfinite(logp_of(jnp.asarray(logits), jnp.array([token]))[0])
