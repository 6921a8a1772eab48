"""The sampler against transformers' `generate` and logits processors, and what it promises about batches, slots and devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
from flax.traverse_util import flatten_dict, unflatten_dict

from lpo_jax.config import ConfigError, MeshConfig
from lpo_jax.decode import Request, Sampler, SamplingConfig
from lpo_jax.decode.load import load_model, with_adapters
from lpo_jax.decode.request import DecodingError
from lpo_jax.decode.rules.warp import Site, Warp, draw, only
from tests.helpers.sampling import PROMPTS, VOCAB, load, processors, requests, run, same, tokenizer, torch_model, write_adapter

GREEDY = SamplingConfig(temperature=0, max_new_tokens=20)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llama")
    torch_model("llama untied").save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    "family",
    [
        "qwen2 tied",
        "starcoder2 window",
        "gpt_bigcode",
        "codegen",
        "gemma3",
        "qwen3_moe",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("granite", "smollm3")),
    ],
)
def test_greedy_is_transformers_generate(family, tmp_path):
    """Ten prompts through four rows, so that rows are replaced too; prompts on both sides of the window."""
    theirs = torch_model(family)
    theirs.save_pretrained(tmp_path)
    found = run(Sampler(load(tmp_path), tokenizer(), GREEDY, 4, 64, segment_steps=7, page=8), requests())
    for request in requests():
        ids = torch.tensor([request.prompt])
        with torch.no_grad():
            out = theirs.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20, eos_token_id=0, pad_token_id=0
            )
            logits = theirs(out).logits[0, len(request.prompt) - 1 : -1]
        ours = found[request.id, 0]
        assert list(ours.tokens) == out[0, len(request.prompt) :].tolist()
        assert ours.finish == ("stop" if ours.tokens[-1] == 0 else "length")
        assert ours.text.split() == [f"w{t}" for t in ours.tokens if t]
        expected = torch.log_softmax(logits, -1).gather(-1, torch.tensor(ours.tokens)[:, None])[:, 0]
        np.testing.assert_allclose(ours.logprobs, expected, atol=2e-4)


@pytest.mark.parametrize(
    ("family", "targets", "mesh"),
    [
        ("llama untied", (".*", r"blocks\.(q|down)"), MeshConfig(1, 2, 2)),
        pytest.param("gpt_bigcode", ("blocks.(q|k)|tied_head", ".*", r"blocks\.up"), MeshConfig(1, 1, 1), marks=pytest.mark.slow),
    ],
    ids=["llama", "tied head"],
)
def test_adapters_in_one_batch_write_what_each_merged_writes(family, targets, mesh, tmp_path):
    """Of the same prompts too, and the model itself beside them; ranks, scales and targets differ."""
    torch_model(family).save_pretrained(tmp_path / "base")
    made = {f"a{i}": write_adapter(tmp_path / f"a{i}", tmp_path / "base", i, each, 2 + i, rslora=i == 1) for i, each in enumerate(targets)}
    base = load(tmp_path / "base", mesh)
    prompts = PROMPTS[:4]
    asked = [Request(f"{name}{i}", prompt, adapter=name) for i, prompt in enumerate([*prompts, prompts[0]]) for name in (None, *made)]
    found = run(Sampler(with_adapters(base, made), tokenizer(), GREEDY, 4, 64, segment_steps=7, page=16), asked)
    texts = set()
    for name in (None, *made):
        merged = load_model(str(tmp_path / "base"), base.mesh, "float32", name and made[name])
        alone = run(Sampler(merged, tokenizer(), GREEDY, 4, 64), [dataclasses.replace(r, adapter=None) for r in asked if r.adapter == name])
        for key, its in alone.items():
            assert dataclasses.replace(found[key], logprobs=()) == dataclasses.replace(its, logprobs=())
            np.testing.assert_allclose(found[key].logprobs, its.logprobs, atol=2e-3)  # the adapters are large: so is their rounding
        texts.add(tuple(completion.text for completion in alone.values()))
    assert len(texts) == 1 + len(made)
    with pytest.raises(ConfigError, match=r"request r: there is no adapter 'other' here \(there are: a0, a1"):
        run(Sampler(with_adapters(base, made), tokenizer(), GREEDY, 4, 64), [Request("r", [1], adapter="other")])


# --- What is drawn.


def test_sampled_completions_have_the_models_distribution(llama):
    """The first two tokens of many samples of one prompt, against transformers' warped probabilities of each."""
    prompt, settings, n = PROMPTS[0], (0.9, 5, 0.9), 3000
    config = SamplingConfig(*settings, max_new_tokens=2)
    found = run(Sampler(load(llama), tokenizer(), config, 500, 8), [Request("r", prompt, seed=3, n=n)])
    assert sorted(sample for _, sample in found) == list(range(n))
    theirs = torch_model("llama untied")
    firsts = np.array([c.tokens[0] for c in found.values()])

    def compare(tokens, prefix):
        with torch.no_grad():
            p = torch.softmax(processors(*settings)(None, theirs(torch.tensor([prefix])).logits[:, -1]), -1)[0].double().numpy()
        counts = np.bincount(tokens, minlength=VOCAB)
        kept = p > 0
        assert counts[~kept].sum() == 0
        assert scipy.stats.chisquare(counts[kept], p[kept] / p[kept].sum() * len(tokens)).pvalue > 1e-3 if kept.sum() > 1 else True

    compare(firsts, prompt)
    common = np.bincount(firsts).argmax()
    compare(np.array([c.tokens[1] for c in found.values() if c.tokens[0] == common]), [*prompt, int(common)])


# --- Batches, slots, devices.

DRAWN = SamplingConfig(temperature=1.0, top_k=20, top_p=0.95, max_new_tokens=18)


@pytest.fixture(scope="module")
def alone(llama):
    """Each request by itself in a sampler of one row."""
    sampler = Sampler(load(llama), tokenizer(), DRAWN, 1, 64)
    return {key: c for request in requests(n=2) for key, c in run(sampler, [request]).items()}


def test_continuous_batching_is_one_by_one(llama, alone):
    """In any order, among any others, in segments of any length; and nothing compiles once each bucket has been seen."""
    assert len({c.tokens for c in alone.values()}) == len(alone)  # different requests and samples, different noise
    assert {c.finish for c in alone.values()} == {"stop", "length"}
    sampler = Sampler(load(llama), tokenizer(), DRAWN, 4, 64, segment_steps=5, page=16)
    same(run(sampler, requests(n=2)), alone)
    programs = sampler.compilations()
    shuffled = [Request(r.id, r.prompt, r.seed, sample) for r in requests() for sample in (0, 1)]
    np.random.default_rng(0).shuffle(shuffled)
    same(run(sampler, shuffled), alone)
    same(run(sampler, requests(sample=1)[3:5]), {(f"r{i}", 1): alone[f"r{i}", 1] for i in (3, 4)})
    assert sampler.compilations() == programs


@pytest.mark.parametrize("mesh", [MeshConfig(8, 1, 1), MeshConfig(2, 2, 2)], ids=str)
def test_eight_devices_are_one(llama, alone, mesh):
    sampler = Sampler(load(llama, mesh), tokenizer(), DRAWN, 8, 64, page=8)
    same(run(sampler, requests(n=2)), alone)
    state = sampler.engine._places()
    assert state.caches[0].k.spec[1] == ("data", "fsdp", "expert")
    assert (state.caches[0].k.spec[2] == "tensor") == (mesh.tensor > 1)


def test_cached_is_cache_free(llama, alone):
    """Each drawn token again, from a forward pass over the whole text."""
    opened = load(llama)
    full = jax.jit(lambda text: opened.model.logits(opened.params, text)[0])
    for request in requests():
        ours = alone[request.id, 1]
        text = np.zeros((1, 64), np.int32)
        text[0, : len(request.prompt) + len(ours.tokens)] = [*request.prompt, *ours.tokens]
        at = np.arange(len(request.prompt), len(request.prompt) + len(ours.tokens))
        keys = jnp.broadcast_to(jnp.array([request.seed, 1], jnp.uint32), (len(at), 2))
        by = Warp(1.0, 20, 0.95)
        assert draw(full(text)[at - 1], Site(keys, jnp.array(at), by)).tolist() == list(ours.tokens)


def test_bfloat16_runs_and_agrees_with_itself(llama):
    sampler = Sampler(load(llama, dtype="bfloat16"), tokenizer(), DRAWN, 4, 64)
    assert jax.tree.leaves(sampler.engine._places().caches) and jax.eval_shape(sampler.engine._empty).caches[0].k.dtype == jnp.bfloat16
    first = run(sampler, requests())
    assert {k: c.tokens for k, c in run(sampler, requests()[::-1]).items()} == {k: c.tokens for k, c in first.items()}


# --- What ends a completion.


def test_stop_strings_and_tokens(llama, alone):
    """A stop string ends exactly where the text first holds it, wherever segments end; only what stands in front is text."""
    asked, tokens = next((r, alone[r.id, 0].tokens) for r in requests() if alone[r.id, 0].finish == "length")
    stop, text = f"w{tokens[6]} w{tokens[7]}", " ".join(f"w{t}" for t in tokens)
    assert text.find(stop) == len(" ".join(f"w{t}" for t in tokens[:6])) + 1
    later = next(f"w{t}" for t in tokens[8:] if text.find(f"w{t}") > text.find(stop))
    for segment in (1, 5, 64):
        config = dataclasses.replace(DRAWN, stop=("absent", stop, later))
        (ours,) = Sampler(load(llama), tokenizer(), config, 1, 64, segment_steps=segment).generate([asked])
        assert (ours.tokens, ours.finish, len(ours.logprobs)) == (tokens[:8], "stop", 8)
        assert ours.text.split() == [f"w{t}" for t in tokens[:6]]
    config = dataclasses.replace(DRAWN, stop_tokens=(tokens[4],))
    (ours,) = Sampler(load(llama), tokenizer(), config, 1, 64).generate([asked])
    assert ours.tokens == tokens[:5] and ours.finish == "stop" and ours.text.split() == [f"w{t}" for t in tokens[:4]]
    (ours,) = Sampler(load(llama), tokenizer(), DRAWN, 1, 64).generate(
        [dataclasses.replace(asked, sampling=dataclasses.replace(DRAWN, max_new_tokens=3))]
    )
    assert ours.tokens == tokens[:3] and ours.finish == "length"


def test_padding_of_the_head_is_never_drawn(llama):
    """A tokenizer of 50 entries under a head of 97."""
    found = run(Sampler(load(llama), tokenizer(50), DRAWN, 4, 64), [Request(f"r{i}", [i + 1], i) for i in range(8)])
    assert max(t for c in found.values() for t in c.tokens) < 50
    logits = jnp.arange(6.0)[None]
    assert int(jnp.argmax(only(logits, 3))) == 2


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("long", [1] * 50), "request long: its prompt of 50 tokens and 18 new ones don't fit max_len_tokens=64"),
        (Request("none", []), "request none: the prompt has no token"),
        (Request("seed", [1], seed=-1), "request seed: seed -1 must lie in"),
        (Request("alien", [97]), "request alien: a token of the prompt isn't one of the tokenizer's 97"),
    ],
)
def test_requests_that_cannot_be(llama, request_, message):
    with pytest.raises(ConfigError, match=message):
        list(Sampler(load(llama), tokenizer(), DRAWN, 1, 64).generate([request_]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("path", ["embed", "head", "final_norm", "blocks.up", "blocks.k"])
def test_weights_that_are_not_finite_end_it_by_their_name(llama, ruined, path, value):
    """One number is enough, where the text depends on it."""
    opened = load(llama)
    flat = flatten_dict(opened.params, sep=".")
    at = (7, 0) if path == "embed" else (0,) * flat[path].ndim  # token 7 is in the prompt
    params = unflatten_dict(flat | {path: flat[path].at[at].set(value)}, sep=".")
    ruined.params, ruined.by_name = (params,), {"model": params}
    with pytest.raises(DecodingError, match=rf"request a: the model's logits aren't finite \(not finite are {path} of the model\)"):
        list(ruined.generate([Request("a", [7, 8, 9])]))


@pytest.fixture(scope="module")
def ruined(llama):
    """Its weights are other ones in each test; the programs stay."""
    return Sampler(load(llama), tokenizer(), GREEDY, 1, 64)


def test_samplers_that_cannot_be(llama):
    opened = load(llama, MeshConfig(2, 2, 1))
    for arguments, message in {
        (97, 6, 64): "rows is 6: it must be a positive multiple of data \\* fsdp \\* expert = 4",
        (97, 4, 65): "max_len_tokens is 65: the model was made for 64",
        (98, 4, 64): "the tokenizer has 98 entries, the model's vocabulary 97",
    }.items():
        vocab, rows, longest = arguments
        with pytest.raises(ConfigError, match=message):
            Sampler(opened, tokenizer(vocab), DRAWN, rows, longest)
    with pytest.raises(ConfigError, match="top_p must be above 0"):
        SamplingConfig(top_p=0.0)
