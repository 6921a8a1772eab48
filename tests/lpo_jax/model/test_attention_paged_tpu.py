"""The kernel's attention is that of plain XLA; on every TPU it reads the cache where it lies."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from lpo_jax.config import MeshConfig, ModelConfig
from lpo_jax.decode.engine import Engine
from lpo_jax.decode.rules.codecode import CoDecoding
from lpo_jax.model.attention import NO_PAGE, PAGES_AXES, KVPages, attend_pages, memory, page_dim, paged_tpu, walk
from lpo_jax.model.decoder import Model
from lpo_jax.plan import chips
from lpo_jax.sharding import make_mesh, named
from lpo_jax.train.state import param_shardings
from tests.helpers.marks import needs_libtpu

L, M, LAYER = 2, 6, 1


@pytest.fixture
def on_tpu(monkeypatch):
    """From here on kernels are chosen as on TPUs, and interpreted."""

    def begin():
        monkeypatch.setattr(paged_tpu, "platform", lambda: "tpu")
        return pltpu.force_tpu_interpret_mode()

    return begin


def texts(lengths, new, K, G, H, S, parts=1, dtype=jnp.float32):
    """q, k, v of the last tokens, in `dtype`; pages of other numbers, in bfloat16; the tokens' positions, and tables of pages in random order."""
    random = np.random.default_rng(len(lengths) + new + K + G + H)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.bfloat16)  # noqa: E731
    B, P = len(lengths), M * len(lengths)
    q, k, v = (x.astype(dtype) for x in (draw(B, new, K, G, H), draw(B, new, K, H), draw(B, new, K, H)))
    wide = ((0, 0),) * 4 + ((0, -H % 128),)
    pages = KVPages(*(jnp.pad(draw(L, P, K, S, H), wide) for _ in "kv"))
    table = np.full((B, M), NO_PAGE, np.int32)
    for part in range(parts):
        free = iter(random.permutation(P // parts).tolist())
        for row in range(part * B // parts, (part + 1) * B // parts):
            held = -(-lengths[row] // S)
            table[row, :held] = [next(free) for _ in range(held)]
    positions = np.maximum(np.array(lengths)[:, None] - new, 0) + np.arange(new)
    return q, k, v, pages, positions, table


def attended(scale, q, k, v, pages, positions, table):
    pairs = walk(jnp.asarray(positions), jnp.asarray(table), pages.slots)
    scores = memory(pairs, positions, (*q.shape[2:4], pages.slots), q.dtype)
    return attend_pages(q, k, v, pages, jnp.int32(LAYER), positions, jnp.asarray(table), pairs, scores, None, scale)[:2]


@pytest.mark.parametrize(
    ("new", "K", "G", "H", "slots", "scale"),
    [
        (1, 2, 3, 64, 16, None),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((3, 3, 2, 64, 16, None), (8, 1, 7, 128, 16, 0.3), (1, 2, 8, 128, 32, None), (1, 5, 1, 256, 16, None), (2, 2, 16, 80, 16, 0.1))
        ),
    ],
)  # fmt: skip
def test_it_is_xlas_attention(on_tpu, new, K, G, H, slots, scale):
    """For texts of one token to many pages, one of several blocks of pages; for a row without a page; in a layer's own pages only."""
    given = texts([slots * 2 + 1, new, 0, slots * M, slots], new, K, G, H, slots)
    expected, written = jax.jit(partial(attended, scale))(*given)
    with on_tpu():
        step = jax.jit(partial(attended, scale))
        assert "pallas_call" in str(step.trace(*given).jaxpr)
        found, cache = step(*given)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        jax.tree.map(np.testing.assert_array_equal, cache, written)
    assert not np.asarray(found)[2].any() and np.asarray(found)[[0, 1, 3, 4]].all()


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "K"), [(MeshConfig(2, 1, 2), 2), (MeshConfig(1, 2, 2), 3)], ids=str)
def test_on_a_mesh(on_tpu, mesh, K):
    """Rows and pages in parts; kv heads cut, or query heads where kv heads can't be."""
    given = texts([33, 5, 20, 96], 1, K, 4, 64, 16, parts=2)
    alone = texts([33, 5, 20, 96], 1, K, 4, 64, 16)
    on = make_mesh(mesh, jax.devices()[:4])
    with jax.set_mesh(on):
        placed = jax.device_put(given[3], named(on, PAGES_AXES, given[3].k.shape))
        expected, _ = jax.jit(partial(attended, None))(*given[:3], placed, *given[4:])
        with on_tpu():
            found, _ = jax.jit(partial(attended, None))(*given[:3], placed, *given[4:])
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert found.shape == alone[0].shape


def test_what_it_cannot_do(monkeypatch):
    """Each is left to plain XLA, for a reason."""
    of = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(shape, dtype)  # noqa: E731

    def obstacle(new=1, H=128, slots=128, places=32, dtype=jnp.bfloat16, window=None):
        return paged_tpu.obstacle(of(16, new, 2, 7, H), of(2, 64, 2, slots, H, dtype=dtype), of(16, places, dtype=jnp.int32), window)

    assert obstacle() == "it runs on TPUs"
    monkeypatch.setattr(paged_tpu, "platform", lambda: "tpu")
    assert obstacle() is None and obstacle(new=8) is None and obstacle(H=256, slots=16) is None
    assert obstacle(dtype=jnp.float32) == "it rounds to bfloat16"
    assert obstacle(window=64) == "it knows no windows"
    assert obstacle(new=128) == "it would read a text once for each of many tokens"
    assert obstacle(H=64) == obstacle(slots=8) == "a page of one head isn't made of whole registers"
    assert obstacle(places=2**13) == "the table doesn't fit into the scalar memory"
    assert [page_dim(H) for H in (64, 80, 128, 256)] == [128, 128, 128, 256]
    monkeypatch.setattr(paged_tpu, "platform", lambda: "cpu")
    assert page_dim(80) == 80


CASES = {  # of head dim, dtype, window, and the rule of two models
    "64": (64, "bfloat16", None, None),
    "128 two models": (128, "bfloat16", None, CoDecoding()),
    "64 window": (64, "bfloat16", 64, None),
    "64 float32": (64, "float32", None, None),
}


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "case"),
    [*((where, case) for where in ("v5e:2x2", "v5p:2x2x1", "v6e:2x2") for case in list(CASES)[:2]), *(("v5e:2x2", case) for case in list(CASES)[2:])],
)  # fmt: skip
def test_a_step_reads_the_cache_where_it_lies(where, case):
    """Of a whole step, compiled for a chip, what is needed beside the arguments doesn't grow with the pages: by the kernel, and by plain XLA where that
    is left to do it."""
    head_dim, dtype, window, rule = CASES[case]
    shape = ModelConfig("mistral" if window else "qwen2", 512, d_model=256, n_layers=2, n_heads=14, n_kv_heads=2, head_dim=head_dim, d_mlp=512, max_positions=2**14, window=window)  # fmt: skip
    model, mesh = Model(shape, dtype, dtype), make_mesh(MeshConfig(1, 1, 1), chips.topology_devices(where)[:1])
    models = [model] * (1 if rule is None else 2)

    def compiled(longest):
        with jax.set_mesh(mesh):
            engine = Engine(models, mesh, rule, 97, [0], 4, longest, longest // 16, 128)
            laid = lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)  # noqa: E731
            state = jax.tree.map(laid, jax.eval_shape(engine._empty), engine._places())
            params = (jax.tree.map(laid, model.shapes(), param_shardings(model, mesh)),) * len(models)
            table = jax.ShapeDtypeStruct((4, longest // 128), jnp.int32)
            step = engine.extend.lower(params, None, state, table, 16, block=4 if rule else 1).compile()
        pool = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.caches))
        assert step.as_text().count("tpu_custom_call") == (0 if window or dtype == "float32" else len(models))
        assert step.memory_analysis().alias_size_in_bytes >= pool
        return step.memory_analysis().temp_size_in_bytes, pool

    (before, small), (after, large) = compiled(1024), compiled(2**14)
    assert after - before < (large - small) / 50  # the rows' tokens, and what is known of them
