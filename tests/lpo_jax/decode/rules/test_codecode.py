"""Co-decoding: the rule against hand-computed vectors and its closed form, blocks against single steps, and both models' caches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from lpo_jax.config import ConfigError, MeshConfig
from lpo_jax.decode import PRESETS, CoDecoding, LoadedModel, Request, Sampler, SamplingConfig
from lpo_jax.decode.rules.warp import Site, Warp, logp_of
from lpo_jax.model.decoder import Model
from tests.helpers.oracle import P, Q
from tests.helpers.sampling import load, requests, run, same, tokenizer, torch_model

V1, PLUS, ALIGNED = PRESETS["cosec_v1"], PRESETS["cosec_plus"], PRESETS["aligned"]
DRAWS = 200_000


def v1(tau, temperature=0.4, top_k=0, top_p=0.95):
    return dataclasses.replace(V1, threshold=tau, draft_temperature=temperature, draft_top_k=top_k, draft_top_p=top_p)


def v2(tau):
    """CoSec+ with the request's top-k."""
    return dataclasses.replace(PLUS, threshold=tau, draft_top_k=None)


def logits(probabilities):
    with np.errstate(divide="ignore"):
        return jnp.log(jnp.asarray(probabilities, jnp.float32))[None]


def drawn(rule, p, q, by, draws=DRAWS, positions=None):
    """Tokens by the rule, at as many sites, and whether each was the draft."""
    site = Site(jnp.full((draws, 2), 7, jnp.uint32), jnp.arange(draws) if positions is None else positions, by)

    @jax.jit
    def outcome(site, target, expert):  # arguments: XLA would work on constants for minutes
        target, expert = (jnp.broadcast_to(x, (draws, x.shape[1])) for x in (target, expert))
        drafts, logq, _ = rule.propose(expert, site)
        accepted = rule.accepts(logp_of(target, drafts), logq)
        return jnp.where(accepted, drafts, rule.instead(target, site)), accepted

    return [np.asarray(x) for x in outcome(site, logits(p), logits(q))]


def closed_form(rule, p, q, by):
    """d(x) [x in A] + (1 - d(A)) fallback(x), in numpy."""
    own = [a if b is None else b for a, b in zip((by.temperature, by.top_k, by.top_p), _draft(rule), strict=True)]
    d = _warped(q, *own)
    fallback = p if rule.fallback == "raw" else _warped(p, by.temperature, by.top_k, by.top_p)
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = np.minimum(p / (q if rule.ratio == "raw" else d), 1) > rule.threshold
    return np.where(kept, d, 0) + (1 - d[kept].sum()) * fallback, kept


def _draft(rule):
    return rule.draft_temperature, rule.draft_top_k, rule.draft_top_p


def _warped(p, temperature, top_k, top_p):
    w = np.asarray(p, float) ** (1 / temperature)
    if top_k:
        w = np.where(w >= np.sort(w)[::-1][min(top_k, len(w)) - 1], w, 0)
    w = w / w.sum()
    above = np.array([w[w > x].sum() for x in w])
    w = np.where(above < top_p, w, 0)
    return w / w.sum()


VECTORS = {
    "1: no filter": (v2(0.3), Warp(1.0), [0.40, 0.38, 0.09, 0.13]),
    "2: draft at T = 0.5": (v2(0.3), Warp(0.5), [0.452381, 0.352381, 0.128571, 0.066667]),
    "3: with top-p": (v2(0.3), Warp(0.5, 0, 0.95), [0.45, 0.37, 0.135, 0.045]),
    "3: with top-k": (v2(0.3), Warp(0.5, 2), [0.45, 0.37, 0.135, 0.045]),
    "3: v1": (v1(0.3, 0.5), Warp(1.7), [0.45, 0.37, 0.135, 0.045]),
    "4: v2 accepts": (v2(0.2), Warp(0.5, 0, 0.95), [0, 0.1, 0.9, 0]),
    "4: v1 rejects": (v1(0.2, 0.5), Warp(1.0), [0.45, 0.37, 0.135, 0.045]),
    "5: v2": (v2(0.6), Warp(0.5), [0.464286, 0.359524, 0.132143, 0.044048]),
    "5: v1": (v1(0.6, 0.5, 0, 1.0), Warp(1.0), [0.452381, 0.352381, 0.128571, 0.066667]),
    "7: tau 0 is the warped security model": (v2(0), Warp(0.5), [0.023810, 0.095238, 0.857143, 0.023810]),
    "8: tau 1 is the target": (v2(1), Warp(0.2, 1), P),
"8: aligned, tau 1 is the target as it is sampled": (CoDecoding(1.0), Warp(0.5, 3), np.array([0.25, 0.09, 0.0225, 0]) / 0.3625),
}  # fmt: skip


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_of_the_specification(name):
    rule, by, expected = VECTORS[name]
    found, kept = closed_form(rule, P, Q, by)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    tokens, accepted = drawn(rule, P, Q, by)
    shares = np.bincount(tokens, minlength=4) / DRAWS
    assert np.abs(shares - expected).sum() / 2 < 0.01
    assert kept[tokens[accepted]].all()


def test_an_expert_equal_to_the_target_is_always_taken_by_the_raw_ratio():
    """Vector 9: with v2 the distribution is that of plain sampling; v1 divides by the sharper draft and rejects."""
    p = np.array([0.6, 0.3, 0.1])
    for rule in (v2(0.999), CoDecoding(0.999)):
        tokens, accepted = drawn(rule, p, p, Warp(0.5))
        assert accepted.all()
        assert np.abs(np.bincount(tokens) / DRAWS - [0.782609, 0.195652, 0.021739]).sum() < 0.01
    for tau, everything in ((0.766, True), (0.7675, False)):
        tokens, accepted = drawn(v1(tau, 0.5, 0, 1.0), p, p, Warp(1.0))
        assert accepted.all() == everything and (everything or not accepted[tokens == 0].any())


def test_the_ratio_must_exceed_the_threshold():
    """Vector 10, with probabilities that floats hold exactly; and what isn't a number is rejected."""
    eight, two = jnp.zeros((1, 8)), jnp.where(jnp.arange(8) < 2, 0.0, -jnp.inf)[None]
    ratio = logp_of(eight, jnp.array([0])), logp_of(two, jnp.array([0]))
    assert not CoDecoding(0.25).accepts(*ratio)[0]
    assert CoDecoding(0.249).accepts(*ratio)[0]
    assert not CoDecoding(0.0).accepts(jnp.array([jnp.nan, -jnp.inf]), jnp.zeros(2)).any()


@given(st.integers(0, 10**6), st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_higher_threshold_takes_fewer(seed, low, high):
    """Vector 11."""
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.full(6, 0.5)), rng.dirichlet(np.full(6, 0.5))
    low, high = sorted((low, high))
    for make in (v1, v2, CoDecoding):
        few, many = (make(tau).accepts(jnp.log(p), jnp.log(q)) for tau in (high, low))
        assert not (few & ~many).any()
        total, _ = closed_form(make(high), p, q, Warp(0.7, 3, 0.9))
        assert total.sum() == pytest.approx(1, abs=1e-6)


def test_it_is_not_speculative_sampling():
    """Vector 16: with a residual the tokens would follow p; these don't, they follow the closed form."""
    rule, by = v2(0.3), Warp(1.0)
    counts = np.bincount(drawn(rule, P, Q, by)[0], minlength=4)
    assert scipy.stats.chisquare(counts, closed_form(rule, P, Q, by)[0] * DRAWS).pvalue > 1e-3
    assert scipy.stats.chisquare(counts, P * DRAWS).pvalue < 1e-9


def test_rules_that_cannot_be():
    for wrong, message in (({"threshold": -0.1}, "threshold must be 0 or more"), ({"draft_top_p": 0.0}, "draft_top_p must be above 0")):
        with pytest.raises(ConfigError, match=message):
            CoDecoding(**wrong)


# --- Two models in the loop.

DRAWN = SamplingConfig(temperature=0.9, top_k=30, top_p=0.97, max_new_tokens=18)


def near(target, scale, key=1):
    """A model that mostly agrees with another."""
    leaves, tree = jax.tree.flatten(target.params)
    keys = jax.random.split(jax.random.key(key), len(leaves))
    moved = [x + scale * jnp.std(x) * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    return LoadedModel(target.model, jax.tree.unflatten(tree, moved), target.mesh)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    found = tmp_path_factory.mktemp("llama")
    torch_model("llama untied").save_pretrained(found)
    return found


@pytest.fixture(scope="module")
def pair(directory):
    target = load(directory)
    return target, near(target, 0.15)


def sampler(pair, rule, rows=4, **more):
    return Sampler(pair[0], tokenizer(), DRAWN, rows, 64, security=pair[1], rule=rule, page=16, **more)


@pytest.fixture(scope="module")
def made(pair):
    """Samplers of the pair, each rule and block compiled once."""
    return functools.cache(lambda rule, block: sampler(pair, rule, block=block))


@pytest.fixture(scope="module")
def steps(made):
    """Each preset, one token at a time."""
    return {name: run(made(rule, 1), requests(n=2)) for name, rule in PRESETS.items()}


@pytest.mark.parametrize("name", PRESETS)
def test_cached_is_cache_free(pair, steps, name):
    """Each token again by the rule, from forward passes of both models over the whole text: a rejected draft is in no cache."""
    rule, rejected = PRESETS[name], 0

    @jax.jit
    def decide(text, key):
        """At every position of a text [S]: what would stand there, the draft, whether it is taken, and log-probabilities."""
        at = jnp.arange(1, len(text))
        site = Site(jnp.broadcast_to(key, (len(at), 2)), at, Warp(0.9, 30, 0.97))
        target, expert = (m.model.logits(m.params, text[None])[0][at - 1] for m in pair)
        drafts, logq, _ = rule.propose(expert, site)
        accepted = rule.accepts(logp_of(target, drafts), logq)
        new = jnp.where(accepted, drafts, rule.instead(target, site))
        return new, drafts, accepted, logp_of(target, drafts), logp_of(expert, drafts), logp_of(target, new)

    for request in requests():
        ours = steps[name][request.id, 1]
        start, n = len(request.prompt), len(ours.tokens)
        text = np.zeros(64, np.int32)
        text[: start + n] = [*request.prompt, *ours.tokens]
        found = decide(text, np.array([request.seed, 1], np.uint32))
        new, drafts, accepted, logp, logq, logp_new = (np.asarray(x)[start - 1 : start - 1 + n] for x in found)
        assert new.tolist() == list(ours.tokens)
        np.testing.assert_array_equal(ours.facts["accepted"], accepted)
        np.testing.assert_array_equal(ours.facts["draft"], drafts)
        np.testing.assert_allclose(ours.facts["p"], np.exp(logp), atol=1e-4)
        np.testing.assert_allclose(ours.facts["q"], np.exp(logq), atol=1e-4)
        np.testing.assert_allclose(ours.logprobs, logp_new, atol=1e-4)
        rejected += int((~accepted).sum())
    assert rejected > 10


@pytest.mark.parametrize(
    ("name", "block"),
    [("aligned", None), ("cosec_plus", 5), *(pytest.param(*x, marks=pytest.mark.slow) for x in (("aligned", 3), ("cosec_v1", 8)))],
)
def test_blocks_are_single_steps(pair, steps, name, block):
    """In other rows, in other company too; the acceptance is neither everything nor nothing."""
    found = run(sampler(pair, PRESETS[name], rows=3, block=block, segment_steps=7), requests(n=2)[::-1])
    assert found.keys() == steps[name].keys()
    for key, ours in found.items():
        alike(ours, steps[name][key])
    accepted = np.concatenate([c.facts["accepted"] for c in found.values()])
    assert 0.1 < accepted.mean() < 0.9


def alike(ours, theirs):
    same({0: dataclasses.replace(ours, facts={})}, {0: dataclasses.replace(theirs, facts={})})
    for name, values in theirs.facts.items():
        np.testing.assert_allclose(ours.facts[name], values, atol=1e-4)


def test_greedy_co_decoding_is_deterministic(pair, made):
    """At temperature 0 the draft and, aligned, the fallback are the most probable tokens: no noise is left."""
    greedy = dataclasses.replace(DRAWN, temperature=0.0)
    asked = [dataclasses.replace(r, sampling=greedy) for r in requests()]
    found = run(made(ALIGNED, None), asked)
    for key, ours in run(made(ALIGNED, 1), [dataclasses.replace(r, seed=99) for r in asked]).items():
        alike(found[key], ours)
    alone = run(Sampler(pair[0], tokenizer(), DRAWN, 4, 64), asked)
    never = run(made(CoDecoding(1.0), 2), asked)
    assert {k: c.tokens for k, c in never.items()} == {k: c.tokens for k, c in alone.items()}
    assert not any(any(c.facts["accepted"]) for c in never.values())


def test_which_temperature_counts(made, steps):
    """Vector 12: v1 draws at a temperature of its own and falls back on the raw target; CoSec+ draws at the request's."""
    hot = dataclasses.replace(DRAWN, temperature=1.6, top_k=0)
    asked = [dataclasses.replace(r, sampling=hot) for r in requests(n=2)]
    tokens = lambda found: {key: c.tokens for key, c in found.items()}  # noqa: E731
    assert tokens(run(made(V1, 1), asked)) == tokens(steps["cosec_v1"])
    hot_draft = dataclasses.replace(V1, draft_temperature=1.6)
    assert tokens(run(made(hot_draft, 1), requests(n=2))) != tokens(steps["cosec_v1"])
    assert tokens(run(made(PLUS, 1), asked)) != tokens(steps["cosec_plus"])


@pytest.mark.slow
def test_models_of_two_families_cut_in_two_ways(directory, tmp_path):
    """A llama cut 2 x 2 x 2 under a codegen of another width that lies on the same devices as 1 x 8 x 1."""
    torch_model("codegen").save_pretrained(tmp_path)
    here, there = MeshConfig(2, 2, 2), MeshConfig(1, 8, 1)
    asked = requests()[:4]
    one = run(Sampler(load(directory), tokenizer(), DRAWN, 4, 64, security=load(tmp_path), rule=CoDecoding(0.02)), asked)
    many = run(Sampler(load(directory, here), tokenizer(), DRAWN, 4, 64, security=load(tmp_path, there), rule=CoDecoding(0.02)), asked)
    for key, ours in many.items():
        alike(ours, one[key])
    accepted = np.concatenate([c.facts["accepted"] for c in one.values()])
    assert 0 < accepted.mean() < 1


@pytest.mark.slow
def test_padding_of_either_head_is_never_drawn(pair):
    """Vector 15: a tokenizer of 50 entries under heads of 97, of which the others are likelier."""

    def loud(m):
        return LoadedModel(m.model, m.params | {"head": m.params["head"].at[:, 50:].multiply(5.0)}, m.mesh)

    asked = [Request(f"r{i}", [i + 1], i, n=2) for i in range(8)]
    found = run(Sampler(loud(pair[0]), tokenizer(50), DRAWN, 4, 64, security=loud(pair[1])), asked)
    quiet = run(Sampler(pair[0], tokenizer(50), DRAWN, 4, 64, security=pair[1]), asked)
    for key, ours in found.items():
        alike(ours, quiet[key])
        assert max(ours.tokens) < 50 and (len(ours.tokens) == 18 or ours.tokens[-1] == 0) and 0 not in ours.tokens[:-1]


def test_pairs_that_cannot_be(pair, directory):
    longer = LoadedModel(Model(dataclasses.replace(pair[0].model.config, max_positions=40)), pair[0].params, pair[0].mesh)
    with pytest.raises(ConfigError, match="the security model was made for 40 tokens"):
        sampler((pair[0], longer), ALIGNED)
    with pytest.raises(ConfigError, match="block is 0"):
        sampler(pair, ALIGNED, block=0)


# --- Rounding.


@pytest.fixture(scope="module")
def precisions(directory):
    """The pair in each precision, from the same float32 weights."""

    def pair(dtype):
        target = load(directory)
        cast = lambda m: LoadedModel(  # noqa: E731
            Model(m.model.config, dtype, dtype), jax.tree.map(lambda x: x.astype(dtype), m.params), m.mesh
        )
        return cast(target), cast(near(target, 0.15))

    return pair


def differences(pair, rule, seed, n, blocks):
    """(samples, those that differ between single steps and blocks, the smallest decision margins at the first difference of each)."""
    asked = [dataclasses.replace(r, seed=seed + r.seed) for r in requests(n=n)]
    single = run(sampler(pair, rule, rows=8, block=1), asked)
    margins, total = [], 0
    full = jax.jit(
        lambda text: [m.model.logits(m.params, text)[0].astype(jnp.promote_types(m.model.compute_dtype, jnp.float32)) for m in pair]
    )
    for block in blocks:
        for key, ours in run(sampler(pair, rule, rows=8, block=block), asked).items():
            total += 1
            theirs = single[key]
            if ours.tokens != theirs.tokens:
                first = next(i for i, (a, b) in enumerate(zip(ours.tokens, theirs.tokens, strict=False)) if a != b)
                request = next(r for r in asked if r.id == key[0])
                text = [*request.prompt, *ours.tokens[:first]]
                padded = np.zeros((1, 64), np.int32)
                padded[0, : len(text)] = text
                margins.append(_margin(rule, *(x[len(text) - 1] for x in full(padded)), request.seed, key[1], len(text)))
    return total, margins


def _margin(rule, target, expert, seed, sample, position):
    """How far the decision at a site is from another: the least noise on both models' logits, of those tried, that changes it."""
    rows = 256
    site = Site(
        jnp.full((rows, 2), jnp.array([seed, sample])).astype(jnp.uint32),
        jnp.full(rows, position),
        Warp(DRAWN.temperature, DRAWN.top_k, DRAWN.top_p),
    )

    @jax.jit
    def decide(target, expert):
        drafts, logq, _ = rule.propose(expert, site)
        return jnp.where(rule.accepts(logp_of(target, drafts), logq), drafts, rule.instead(target, site))

    rng, sizes = np.random.default_rng(0), np.geomspace(1e-6, 1, 19)
    noise = [rng.uniform(-1, 1, (rows, len(target))) * (np.arange(rows) > 0)[:, None] for _ in range(2)]  # none on the first
    for size in sizes:
        tokens = np.asarray(decide(*(x + (size * e).astype(x.dtype) for x, e in zip((target, expert), noise, strict=True))))
        if (tokens != tokens[0]).any():
            return size
    return np.inf


@pytest.mark.slow
def test_blocks_are_single_steps_in_float64(precisions):
    with jax.enable_x64(True):
        assert differences(precisions("float64"), dataclasses.replace(PLUS, threshold=0.5), 0, 4, [4]) == (40, [])


@pytest.mark.heavy
@pytest.mark.parametrize(("dtype", "tie"), [("float64", None), ("float32", 1e-4), ("bfloat16", 0.1)])
def test_blocks_over_presets_thresholds_and_seeds(precisions, dtype, tie):
    """400 samples a rule; in float64 none may differ, else each difference must be a tie."""
    with jax.enable_x64(dtype == "float64"):
        for name, preset in PRESETS.items():
            for tau in (0.05, 0.3, 0.8):
                total, margins = differences(precisions(dtype), dataclasses.replace(preset, threshold=tau), 1000, 20, [2, 8])
                print(f"{dtype} {name} tau {tau}: {len(margins)} of {total} differ, largest margin {max(margins, default=0):.2g}")
                assert max(margins, default=0) < tie if tie else not margins
