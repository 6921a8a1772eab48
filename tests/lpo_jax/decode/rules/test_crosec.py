"""Co-decoding across tokenizers: the specification's vectors, the expert's own tokens, caches that roll back, and batches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import tokenizer
from lpo_jax.config import ConfigError
from lpo_jax.decode import Request, Sampler, SamplingConfig
from lpo_jax.decode.cross_sampler import CrossSampler
from lpo_jax.decode.reader import Reader
from lpo_jax.decode.rules import own_tokens
from lpo_jax.decode.rules.crosec import CroSec, mix
from lpo_jax.decode.rules.own_tokens import OwnTokens
from lpo_jax.decode.rules.vocab_map import Alignment, Vocabulary, align, spell
from lpo_jax.decode.rules.warp import Site, Warp, draw
from tests.helpers.sampling import requests, run
from tests.helpers.vocabularies import CODE, PAIRS, PROSE, SOME_REAL, TEXT, byte_level, bytes_only, loaded, sentencepiece, shape

# --- The mixture.


def alignment(votes_for, strength, nearest):
    return Alignment(np.array(votes_for, np.int32), np.array(strength, np.float32), np.array(nearest, np.int32))


M = alignment([0, 1, 2, -1], [1, 1, 0.8, 0], [0, 1, 2])  # [[1, 0, 0], [0, 1, 0], [0, 0, .8], [0, 0, 0]]
S, T = jnp.array([[0.4, 0.3, 0.2, 0.1]]), jnp.array([[0.2, 0.5, 0.3]])


def mixed(by, t=T, s=S, w=0.3, published=False):
    return np.asarray(mix(t, s, by, jnp.full(len(t), w), published)[0], np.float64)[0]


def test_vectors_of_the_specification():
    np.testing.assert_allclose(mix(T, S, M, jnp.array([0.3]))[1], [[0.4, 0.3, 0.16]], atol=1e-7)
    for published in (False, True):
        np.testing.assert_allclose(mixed(M, published=published), [0.271399, 0.459290, 0.269311], atol=1e-6)
    unknown = alignment(M.votes_for, M.strength, [0, 1, -1])
    np.testing.assert_allclose(mixed(unknown, published=True), [0.371429, 0.628571, 0], atol=1e-6)
    np.testing.assert_allclose(mixed(unknown, w=0, published=True), [2 / 7, 5 / 7, 0], atol=1e-6)  # restricted to what the map knows
    normalised = alignment(M.votes_for, [1, 1, 1, 0], M.nearest)
    m, n = (np.asarray(mix(T, S, by, jnp.array([0.3]))[1])[0] for by in (M, normalised))
    assert m[:2].tolist() == n[:2].tolist() and n[2] > m[2]
    with_expert_only = alignment([0, 1, -1, -1], [1, 1, 0, 0], [0, 1, -1])
    np.testing.assert_allclose(mixed(with_expert_only), [0.7 * 0.26 / 0.7, 0.7 * 0.44 / 0.7, 0.3], atol=1e-6)


def distributions(size):
    return st.lists(st.floats(0.001, 1), min_size=size, max_size=size).map(lambda x: jnp.array([x]) / sum(x))


@settings(max_examples=40)
@given(distributions(6), distributions(5), st.lists(st.integers(-1, 5), min_size=5, max_size=5), st.floats(0, 1))
def test_what_the_expert_has_no_word_for_keeps_its_probability(t, s, votes_for, w):
    by = alignment(votes_for, np.where(np.array(votes_for) < 0, 0, 0.75), [-1] * 6)
    e = mixed(by, t, s, w)
    heard = np.isin(np.arange(6), votes_for)
    np.testing.assert_allclose(e.sum(), 1, atol=1e-5)
    np.testing.assert_array_equal(e[~heard], np.asarray(t)[0][~heard])
    if w == 0:
        np.testing.assert_allclose(e, t[0], rtol=1e-5)


@settings(max_examples=40)
@given(distributions(6), distributions(6), st.floats(0, 1))
def test_one_vocabulary_is_the_plain_mixture(t, s, w):
    identity = alignment(range(6), np.ones(6), range(6))
    for published in (False, True):
        np.testing.assert_allclose(mixed(identity, t, s, w, published), (1 - w) * t[0] + w * s[0], atol=1e-6)
        np.testing.assert_allclose(mixed(identity, t, t, w, published), t[0], atol=1e-6)


# --- The expert's own tokens.

ONE, OTHER = byte_level(CODE, 330), sentencepiece(PROSE, 1100, PAIRS)
PIECES = st.lists(TEXT | st.sampled_from([*CODE, *PROSE]) | st.text(max_size=8), max_size=8)


def superwords():
    """A tokenizer with tokens across spaces: no place to cut."""
    tok = byte_level(["of the of the of the"], 280)
    spec = tok.backend.to_str().replace('"use_regex":true', '"use_regex":false')
    backend = tokenizer.tokenizers.Tokenizer.from_str(spec)
    trainer = tokenizer.tokenizers.trainers.BpeTrainer(vocab_size=290, special_tokens=["<|endoftext|>"], show_progress=False)
    backend.train_from_iterator(["of the of the of the"], trainer)
    return tokenizer.Tokenizer(backend, backend.token_to_id("<|endoftext|>"), None)


boundary = functools.cache(own_tokens.boundary)


def grown(tok, pieces):
    own, text = OwnTokens(tok, boundary(tok), ""), ""
    for piece in ["", *pieces]:
        own.add(piece)
        text += piece
        assert own.ids == tok.document(text)
    return own


@pytest.mark.parametrize("tok", [ONE, OTHER, superwords()], ids=["byte-level", "sentencepiece", "superwords"])
@given(pieces=PIECES)
def test_own_tokens_are_the_encoding_of_the_text(tok, pieces):
    grown(tok, pieces)


@pytest.mark.parametrize("name", SOME_REAL)
def test_own_tokens_with_real_tokenizers(name, shared_data):
    tok = tokenizer.load(shared_data / "tokenizers" / name)

    @given(PIECES)
    def whatever_comes(pieces):
        grown(tok, pieces)

    whatever_comes()
    own = grown(tok, CODE * 2 + [char for text in PROSE for char in text])
    assert len(own._tail) < 100 and len(own._settled) > 100  # the beginning is settled


def test_places_to_cut():
    assert boundary(superwords()) is None
    assert boundary(ONE).split("if a b: x = 1") == ["if", " a", " b: x = 1"]
    assert boundary(OTHER).split("if a b: x = 1") == ["if", "a", "b: x = 1"]


# --- Sampling.

CONFIG = SamplingConfig(temperature=0.9, top_k=0, top_p=0.98, max_new_tokens=24)
PROMPTS = ["def read(", "", "The hash of é", "class Größe:\n    x", "import os, sys\nfor name in os.listdir('.'):\n    print(name"]
asked = functools.partial(requests, PROMPTS)


@pytest.fixture(scope="module", autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def vocabulary(tok, model):
    return Vocabulary(tok, np.asarray(model.params["embed"]))


@pytest.fixture(scope="module", params=["byte-level", pytest.param("sentencepiece", marks=pytest.mark.slow)])
def pair(request, wide):
    """(target, expert, their tokenizers, alignment); the target has the tokenizer named, the expert the other."""
    toks = [ONE, OTHER] if request.param == "byte-level" else [OTHER, ONE]
    target = loaded(shape(toks[0].size + 5), 0)
    expert = loaded(shape(toks[1].size + 2, n_kv_heads=4, positions="learned", norm="layer", gated_mlp=False, tied_head=True), 1)
    return target, expert, *toks, align(vocabulary(toks[0], target), vocabulary(toks[1], expert))


def forward(opened, vocab, longest=128):
    """A model without a cache: tokens -> the logits behind them."""
    logits = jax.jit(lambda tokens, at: opened.model.logits(opened.params, tokens)[0, at, :vocab])

    def read(ids):
        padded = np.zeros((1, longest), np.int32)
        padded[0, : len(ids)] = ids
        return logits(padded, len(ids) - 1)

    return read


def drawing(by):
    """(both models' logits, weight, key, position) -> the token, by the rule as it stands."""

    @jax.jit
    def draw_one(z_t, z_s, weight, key, position):
        e, _ = mix(jax.nn.softmax(z_t[None]), jax.nn.softmax(z_s[None]), by, weight[None])
        site = Site(key[None], position[None], Warp(CONFIG.temperature, CONFIG.top_k, CONFIG.top_p))
        return draw(jnp.log(e), site)[0]

    return lambda z_t, z_s, weight, request, position: int(
        draw_one(z_t, z_s, jnp.float64(weight), jnp.array([request.seed, 0], jnp.uint32), jnp.int32(position))
    )


def begun(raw):
    """How many bytes at the end are the beginning of a character: those that some others would make one of."""
    for n in range(1, 4):
        for following in ([*first] + [0x80] * k for first in ([0x80], [0x90], [0xA0], [0xBF]) for k in range(3)):
            try:
                if len((raw[-n:] + bytes(following)).decode()) == 1 and len(raw) >= n:
                    return n
            except UnicodeDecodeError:
                pass
    return 0


@pytest.fixture(scope="module")
def alone(pair):
    """Each request by itself in one row, and what the expert read and said at each step."""
    sampler, seen = CrossSampler(*pair, CONFIG, 1, 96), {}
    read = sampler._expert.read
    for request in asked(n=2):
        steps = []

        def record(wanted, steps=steps):
            logits = read(wanted)
            steps.append((list(wanted[0]), np.array(logits[0])))
            return logits

        sampler._expert.read = record
        for completion in sampler.generate([request]):
            seen[completion.id, completion.sample] = completion, steps[:]
            steps.clear()
    return seen


def test_cached_is_cache_free_and_the_expert_reads_the_text(pair, alone):
    """At every step: the expert's tokens are its encoding of the text, its logits those of a fresh pass over them, and the token drawn is that of
    the mixture of two fresh passes."""
    target, expert, tok, its, by = pair
    full_t, full_s, draw_one, spelling = forward(target, tok.size), forward(expert, its.size), drawing(by), spell(tok)
    within = 0
    for request in asked():
        ours, steps = alone[request.id, 0]
        ids, raw = tok.document(request.prompt), b""
        assert len(steps) == len(ours.tokens)
        for token, logp, (read, logits) in zip(ours.tokens, ours.logprobs, steps, strict=True):
            unfinished = begun(raw)
            assert read == its.document(request.prompt + raw[: len(raw) - unfinished].decode("utf-8", "replace"))
            z_t, z_s = full_t(ids), full_s(read)
            np.testing.assert_allclose(logits[: its.size], z_s, atol=1e-9)
            assert draw_one(z_t, z_s, 0 if unfinished else 0.3, request, len(ids)) == token
            np.testing.assert_allclose(logp, jax.nn.log_softmax(z_t)[token], atol=1e-6)
            within += unfinished > 0
            ids.append(token)
            new = spelling.get(token, b"")
            raw += new.removeprefix(b" ") if not request.prompt and tok is OTHER and not raw else new
    reads = [[read for read, _ in steps] for _, steps in alone.values()]
    rolled_back = sum(before != after[: len(before)] for read in reads for before, after in zip(read, read[1:], strict=False))
    assert rolled_back and within


def test_a_reader_reads_what_it_is_asked_whatever_it_read_before(pair):
    """Texts that lose their ends, change in the middle, stay, grow by many tokens or by one, in rows of their own."""
    expert, vocab = pair[1], pair[3].size
    reader, full, rng = Reader("expert", expert, vocab, 3, 40, 4, page=8), forward(expert, vocab, 40), np.random.default_rng(0)
    texts = {row: rng.integers(0, vocab, 5).tolist() for row in range(3)}
    for row, ids in texts.items():
        reader.begin(row, ids)
    for step in range(12):
        if step == 6:
            texts[1] = rng.integers(0, vocab, 20).tolist()
            reader.begin(1, texts[1])
        for row in range(3):
            kept = rng.integers(1, len(texts[row]) + 1) if step % 3 != 1 else len(texts[row])
            texts[row] = [*texts[row][:kept], *rng.integers(0, vocab, min(40 - kept, rng.integers(0, 11))).tolist()]
        found = reader.read({row: ids for row, ids in texts.items() if row != step % 4})
        for row, ids in texts.items():
            if row != step % 4:
                np.testing.assert_allclose(found[row, :vocab], full(ids), atol=1e-9)
    assert (np.asarray(found)[:, vocab:] == -np.inf).all()


def same(found, expected):
    assert found.keys() == expected.keys()
    for key, ours in found.items():
        assert dataclasses.replace(ours, logprobs=(), facts={}) == dataclasses.replace(expected[key], logprobs=(), facts={})
        np.testing.assert_allclose(ours.logprobs, expected[key].logprobs, atol=1e-6)
        for name, values in ours.facts.items():
            np.testing.assert_allclose(values, expected[key].facts[name], atol=1e-6)


@pytest.fixture(scope="module")
def sampler(pair):
    return CrossSampler(*pair, CONFIG, 3, 96)


def test_a_row_does_not_depend_on_its_batch(sampler, alone):
    """In any order, among any others; and nothing compiles once each bucket has been seen."""
    expected = {key: completion for key, (completion, _) in alone.items()}
    assert len({c.tokens for c in expected.values()}) == len(expected)
    same(run(sampler, asked(n=2)), expected)
    programs = sampler.compilations()
    shuffled = [dataclasses.replace(r, sample=sample) for r in asked() for sample in (0, 1)]
    np.random.default_rng(0).shuffle(shuffled)
    same(run(sampler, shuffled), expected)
    assert sampler.compilations() == programs


def test_the_text_is_that_of_the_tokens(pair, alone):
    """As the target's tokenizer decodes them. (Sentencepiece's decoder gives up letters that stand beside half a character.)"""
    tok = pair[2]
    for request in asked():
        ours, prompt = alone[request.id, 0][0], tok.document(request.prompt)
        text = tok.backend.decode([*prompt, *(token for token in ours.tokens if token != tok.eos_id)])[len(tok.backend.decode(prompt)) :]
        assert ours.text == text if tok is ONE else ours.text.startswith(text.split("\ufffd")[0])


def test_weight_zero_is_the_target_alone(pair, sampler, monkeypatch):
    """Token for token what `Sampler` draws from the same seeds, and takes greedily."""
    greedy = dataclasses.replace(CONFIG, temperature=0)
    requests = [*asked(), *(dataclasses.replace(r, id=f"greedy {r.id}", sampling=greedy) for r in asked())]
    theirs = run(Sampler(pair[0], pair[2], CONFIG, 3, 96), requests)
    monkeypatch.setattr(sampler, "rule", CroSec(weight=0))
    for key, ours in run(sampler, requests).items():
        assert (ours.tokens, ours.finish) == (theirs[key].tokens, theirs[key].finish)
        np.testing.assert_allclose(ours.logprobs, theirs[key].logprobs, atol=1e-6)


# --- Of these the kind of tokenizers matters not.


@pytest.fixture(scope="module")
def twins(wide):
    """Two models of one tokenizer, that has one way to write a text."""
    tok = bytes_only()
    models = [loaded(shape(257), seed) for seed in (3, 4)]
    return *models, tok, tok, align(*(vocabulary(tok, model) for model in models))


def test_one_tokenizer_is_the_direct_mixture(twins):
    """(1 - w) p + w q of two models that read the same tokens, as long as these are text."""
    target, expert, tok, _, by = twins
    config = SamplingConfig(temperature=0.7, top_p=0.9, max_new_tokens=20)
    full_t, full_s = forward(target, 257), forward(expert, 257)

    @jax.jit
    def draw_one(z_t, z_s, seed, position):
        e = 0.4 * jax.nn.softmax(z_t) + 0.6 * jax.nn.softmax(z_s)
        site = Site(jnp.array([[seed, 0]], jnp.uint32), position[None], Warp(0.7, 0, 0.9))
        return draw(jnp.log(e)[None], site)[0]

    requests, compared, spelling = [Request(str(i), "x = ", seed=i) for i in range(16)], 0, spell(tok)
    for ours in CrossSampler(*twins, config, 4, 96, rule=CroSec(weight=0.6)).generate(requests):
        request = requests[int(ours.id)]
        ids = tok.document(request.prompt)
        for token in ours.tokens:
            if spelling.get(ids[-1], b"\xff") >= b"\x80":
                break  # not text: the expert reads a replacement, or waits
            assert int(draw_one(full_t(ids), full_s(ids), request.seed, jnp.int32(len(ids)))) == token
            ids.append(token)
            compared += 1
    assert compared > 10


def test_published_moves_on_by_the_map_and_drops_what_it_lacks(twins):
    *models, tok, _, by = twins
    nearest = np.roll(by.nearest, 1)  # so that the map is seen to be what counts
    nearest[100:120] = -1
    sampler = CrossSampler(*models, tok, tok, dataclasses.replace(by, nearest=nearest), CONFIG, 2, 96, rule=CroSec(published=True))
    read, seen = sampler._expert.read, {}

    def record(wanted):
        seen.update({row: list(ids) for row, ids in wanted.items()})
        return read(wanted)

    sampler._expert.read = record
    (ours,) = sampler.generate([Request("r", "x = ", seed=2)])
    lacking = np.flatnonzero(nearest < 0)
    assert not np.isin(ours.tokens, lacking).any()
    assert seen[0] == [*tok.document("x = "), *(int(nearest[t]) for t in ours.tokens[:-1])]


def test_what_ends_a_completion(twins):
    """Stop strings where the text first holds one, wherever tokens end; stop tokens; length; and a text too long for the expert."""
    *models, tok, _, by = twins
    sampler = CrossSampler(*models, tok, tok, by, CONFIG, 2, 96, expert_len_tokens=40)
    (whole,) = sampler.generate([Request("r", "x = ", seed=5)])
    pairs = (whole.text[i : i + 2] for i in range(3, len(whole.text)))
    stop = next(pair for pair in pairs if len(pair.encode()) == 2)  # bytes that are no text end elsewhere
    at, tokens = whole.text.find(stop), whole.tokens
    (ours,) = sampler.generate([Request("r", "x = ", seed=5, sampling=dataclasses.replace(CONFIG, stop=("absent", stop)))])
    assert (ours.text, ours.finish) == (whole.text[:at], "stop") and ours.tokens == tokens[: len(ours.tokens)]
    spelled = b"".join(spell(tok)[token] for token in ours.tokens).decode("utf-8", "replace")
    assert spelled.endswith(stop) and stop not in spelled[:-1]
    (ours,) = sampler.generate([Request("r", "x = ", seed=5, sampling=dataclasses.replace(CONFIG, max_new_tokens=6))])
    assert (ours.tokens, ours.finish, len(ours.logprobs)) == (tokens[:6], "length", 6)
    (ours,) = sampler.generate([Request("r", "x" * 39, seed=5)])
    assert ours.finish == "length" and len(ours.tokens) < 24
    assert len(tok.document("x" * 39 + ours.text)) > 40 >= len(tok.document("x" * 39 + ours.text[:-1]))
    with pytest.raises(ConfigError, match="request r: its prompt has 41 tokens of the expert, which holds 40"):
        list(sampler.generate([Request("r", "x" * 41)]))
    sampler.ends = (*sampler.ends, tokens[2])
    (ours,) = sampler.generate([Request("r", "x = ", seed=5)])
    assert ours.finish == "stop" and ours.tokens == tokens[: len(ours.tokens)] and ours.tokens[-1] == tokens[2]


def test_what_cannot_be(twins):
    *models, tok, _, by = twins
    for request, message in (
        (Request("long", [1] * 80), "request long: its prompt of 80 tokens and 24 new ones don't fit max_len_tokens=96"),
        (Request("none", []), "request none: the prompt has no token"),
        (Request("seed", [1], seed=-1), "request seed: seed -1 must lie in"),
        (Request("alien", [257]), "request alien: a token of the prompt isn't one of the tokenizer's 257"),
    ):
        with pytest.raises(ConfigError, match=message):
            list(CrossSampler(*models, tok, tok, by, CONFIG, 1, 96).generate([request]))
    for rows, longest, its, message in (
        (0, 96, tok, "rows is 0: it must be a positive multiple"),
        (1, 513, tok, "513 tokens are asked for: the model was made for 512"),
        (1, 96, ONE, "the tokenizers have 257 and 330 entries, the alignment 257 and 257: it was made for others"),
    ):
        with pytest.raises(ConfigError, match=message):
            CrossSampler(*models, tok, its, by, CONFIG, rows, longest)
    with pytest.raises(ConfigError, match="weight must lie in 0 .. 1, not 1.5"):
        CroSec(weight=1.5)
