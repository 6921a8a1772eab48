"""Sampling on pages: in little memory, with prompts that share their beginnings, and by programs that copy no cache."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from lpo_jax.config import ConfigError, MeshConfig
from lpo_jax.decode import CoDecoding, Request, Sampler, SamplingConfig
from lpo_jax.decode.engine import Engine
from lpo_jax.decode.sample import Sample
from lpo_jax.decode.sampler import Session
from lpo_jax.decode.tables import Chunks
from lpo_jax.model import hf
from lpo_jax.model.decoder import Model
from lpo_jax.plan import chips
from lpo_jax.sharding import make_mesh
from lpo_jax.train.state import param_shardings
from tests.helpers.sampling import PROMPTS, load, requests, run, same, save_model, tokenizer

HOT = SamplingConfig(temperature=1.1, top_k=30, top_p=0.97, max_new_tokens=18)
PAGE = 8


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def plenty(directory):
    """What comes of memory for everybody."""
    return run(Sampler(load(directory), tokenizer(), HOT, 4, 64, page=PAGE), requests(n=2))


def gib(opened, pages):
    return (pages + 0.5) * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(opened.model.empty_cache(1, PAGE))) / 2**30


@pytest.mark.parametrize(
    ("mesh", "rows", "pages", "paired"),
    [
        (MeshConfig(1, 1, 1), 4, 10, False),
        (MeshConfig(1, 1, 1), 4, 10, True),
        pytest.param(MeshConfig(2, 2, 2), 16, 40, False, marks=pytest.mark.slow),
    ],
    ids=["one", "two models", "mesh"],
)
def test_little_memory_changes_no_text(directory, plenty, mesh, rows, pages, paired, monkeypatch):
    """Some wait, some are put back; everybody gets what they would have got, and streams never take a word back."""
    put_back, restart = [], Sample.restart
    monkeypatch.setattr(Sample, "restart", lambda self: (put_back.append(self), restart(self))[1])
    opened = load(directory, mesh)
    security = {"security": opened} if paired else {}  # equal to the target: every draft is taken
    size = gib(opened, pages) * (2 if paired else 1)
    sampler = Sampler(opened, tokenizer(), HOT, rows, 64, page=PAGE, cache_gib=size, segment_steps=4, **security)
    assert sampler.engine.pages == pages
    if paired:
        plenty = run(Sampler(opened, tokenizer(), HOT, rows, 64, page=PAGE, segment_steps=4, **security), requests(n=2))
    session, told, found = Session(sampler, streams=True), {}, {}
    for request in requests(n=2):
        session.add(request)
    while session.busy:
        for news in session.advance():
            key = news.id, news.sample
            assert news.text.startswith(told.get(key, ""))
            told[key] = news.text
            if news.done:
                assert key not in found
                found[key] = news.done
    same({key: replace(done, facts={}) for key, done in found.items()}, {key: replace(done, facts={}) for key, done in plenty.items()})
    assert put_back
    assert all(pool.held == 0 for pool in session._tables.pools)


@pytest.mark.slow
def test_five_hundred_requests_with_cancels(directory):
    sampler = Sampler(load(directory), tokenizer(), HOT, 8, 64, page=PAGE, cache_gib=gib(load(directory), 24), segment_steps=4)
    session, found = Session(sampler), set()
    asked = [Request(str(i), PROMPTS[i % 10][: 1 + i % 30], seed=i) for i in range(500)]
    cancelled = set()
    for i, request in enumerate(asked):
        session.add(request)
        if i % 5 == 0:
            found |= {news.id for news in session.advance()}
        if i % 7 == 0:
            session.cancel(str(i // 2))
            cancelled.add(str(i // 2))
    while session.busy:
        found |= {news.id for news in session.advance()}
    assert found >= {r.id for r in asked} - cancelled
    (pool,) = session._tables.pools
    assert pool.held == 0 and pool.available == pool.count == 24


def test_cancelled_before_its_prompt_is_read(directory, plenty):
    """Others that share its beginning read it themselves."""
    session = Session(Sampler(load(directory), tokenizer(), HOT, 4, 64, page=PAGE), streams=True)
    long = next(r for r in requests(n=2) if r.id == "r8")
    session.add(Request("gone", long.prompt, seed=1, n=1))
    session._admit()
    session.cancel("gone")
    session.add(long)
    found = {}
    while session.busy:
        found |= {(news.id, news.sample): news.done for news in session.advance() if news.done}
    same(found, {key: plenty[key] for key in (("r8", 0), ("r8", 1))})


def test_a_beginning_is_read_once(directory, monkeypatch):
    """By the samples of a prompt, by prompts that begin alike, and by those who come when all others have gone; by each adapter for itself."""
    sampler = Sampler(load(directory), tokenizer(), HOT, 4, 64, page=PAGE)
    chunks, prefill = [], sampler.engine.prefill
    monkeypatch.setattr(sampler.engine, "prefill", lambda *args: (chunks.append(int(args[3].starts[0])), prefill(*args))[1])
    common, session = PROMPTS[8][:20], Session(sampler)

    def ask(*asked):
        chunks.clear()
        for request in asked:
            session.add(request)
        found = {}
        while session.busy:
            found |= {(news.id, news.sample): news.done for news in session.advance() if news.done}
        alone = Sampler(load(directory), tokenizer(), HOT, 1, 64, page=64)
        for request in asked:
            same({key: c for key, c in found.items() if key[0] == request.id}, run(alone, [request]))
        return chunks

    assert ask(Request("a", common, seed=1, n=6)) == [0, 8, 16]
    assert ask(Request("b", [*common, 5, 6, 7, 8], seed=2), Request("c", [*common[:17], 9, 9, 9], seed=3)) == [16, 16]
    assert ask(Request("d", common, seed=4)) == []
    assert ask(Request("e", [1, *common], seed=5)) == [0, 8, 16]


def test_a_budget_that_holds_no_text(directory):
    opened = load(directory)
    with pytest.raises(ConfigError, match=r"cache_gib is .*: a text of 64 tokens needs .*: raise it, or lower max_len_tokens"):
        Sampler(opened, tokenizer(), HOT, 4, 64, page=PAGE, cache_gib=gib(opened, 8))


@pytest.mark.parametrize("where", ["cpu", pytest.param("v5e:2x2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", [None, CoDecoding()], ids=["one", "two models"])
def test_a_step_copies_no_cache(directory, where, rule):
    """What a program needs beside its arguments doesn't grow with the pages, and these are given back in place."""
    devices = jax.devices()[:1] if where == "cpu" else chips.topology_devices(where)[:1]
    shape = replace(hf.read_config(directory), n_heads=4, n_kv_heads=2, head_dim=128)  # smaller heads are padded by a TPU
    dtype = "float32" if where == "cpu" else "bfloat16"
    models, mesh = [Model(shape, dtype, dtype)] * (1 if rule is None else 2), make_mesh(MeshConfig(1, 1, 1), devices)

    def laid(x, where):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    def compiled(pages):
        engine = Engine(models, mesh, rule, 97, [0], 4, 512, pages, 128)
        state = jax.tree.map(laid, jax.eval_shape(engine._empty), engine._places())
        params = jax.tree.map(laid, models[0].shapes(), param_shardings(models[0], mesh))
        chunks = Chunks(*(jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((1, 128), (1,), (1, 4), (1,))))
        table, params = jax.ShapeDtypeStruct((4, 4), jnp.int32), (params,) * len(models)
        with jax.set_mesh(mesh):
            step = engine.extend.lower(params, None, state, table, 16, block=1 if rule is None else 2).compile()
            read = engine.prefill.lower(params, None, state.caches, chunks).compile()
        return [program.memory_analysis() for program in (step, read)], sum(
            x.size * x.dtype.itemsize for x in jax.tree.leaves(state.caches)
        )

    (few, small), (many, large) = compiled(16), compiled(256)
    for before, after in zip(few, many, strict=True):
        assert after.temp_size_in_bytes < before.temp_size_in_bytes + (large - small) / 100
        assert after.temp_size_in_bytes < large / 4 and after.alias_size_in_bytes >= large
