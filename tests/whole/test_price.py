"""What a tree costs, deterministically: tokens against the unshared layout, memory against the padded step, fill of the rows."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from benchmarks import common, memory, prices
from benchmarks import step as step_benchmark
from data_pipeline.feed import Feed
from data_pipeline.trees import Encoded, pack, plant
from lpo_jax.config import AdamW, MeshConfig, ModelConfig
from lpo_jax.losses import logps
from lpo_jax.model.decoder import Model
from lpo_jax.sharding import make_mesh
from lpo_jax.train import state
from lpo_jax.train.optimizer import optimizer
from lpo_jax.train.placement import to_devices
from lpo_jax.train.step import make_train_step, reference_logps


def with_prefix(pair, length):
    """The pair behind a prompt of `length` tokens, in place of its own prompt and reasoning."""
    start = pair.chosen_code_start
    prefix = np.full(length, 7, np.int32)
    swap = lambda ids, fill: np.concatenate([np.full(length, fill, ids.dtype), ids[start:]])  # noqa: E731
    return dataclasses.replace(
        pair,
        chosen=np.concatenate([prefix, pair.chosen[start:]]),
        rejected=np.concatenate([prefix, pair.rejected[start:]]),
        m_plus=swap(pair.m_plus, False),
        m_minus=swap(pair.m_minus, False),
        answer_start=length,
        chosen_code_start=length,
        rejected_code_start=length,
    )


@pytest.fixture(scope="module")
def real_pairs(shared_data):
    """All real pairs, each once: the sets overlap."""
    files = [*sorted((shared_data / "safecoder").glob("*.jsonl")), shared_data / "sven" / "train.python.jsonl"]
    pairs = common.load_pairs(files, common.load_tokenizer(shared_data / "tokenizers" / "codegen-350m"))
    return list({(p.chosen[p.chosen_code_start :].tobytes(), p.rejected[p.rejected_code_start :].tobytes()): p for p in pairs}.values())


@pytest.mark.slow
def test_a_tree_is_half_of_two_sequences(real_pairs):
    pairs = [with_prefix(p, 250) for p in real_pairs]
    pairs = [p for p in pairs if len(p.chosen) <= 8192 and len(p.rejected) <= 8192]
    assert len(pairs) > 1000
    tree, two, sft = (sum(len(way(p).tokens) for p in pairs) for way in (plant, common.two_sequences, common.chosen_only))
    print(f"two sequences over tree {two / tree:.3f}, tree over SFT {tree / sft:.3f}")
    assert two / tree >= 1.80
    assert tree / sft <= 1.10


@pytest.mark.slow
def test_rows_are_full(real_pairs):
    sizes = [len(plant(p).tokens) for p in real_pairs]
    sizes = [size for size in sizes if size <= 4096]
    assert sum(sizes) / (4096 * len(pack(sizes, 4096))) >= 0.96


def test_nothing_is_compiled_again_after_the_first_step(seed_shards):
    feed = Feed(seed_shards["trimmed"])
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    model = Model(ModelConfig("llama", 512, d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=8, d_mlp=16, max_positions=1024))
    tx = optimizer(AdamW(lr=1e-3), 100, model)
    with jax.set_mesh(mesh):
        now = jax.device_put(state.new_state(model.init(jax.random.key(0)), tx), state.state_shardings(model, tx, mesh))
        step = make_train_step(model, step_benchmark.LPO, tx, mesh)
        for batch in feed.batches(4, 0, 2 * feed.rows("train") // 4):  # two epochs
            now, _ = step(now, {}, to_devices(batch, mesh, 4, 1))
    assert step._cache_size() == 1


@pytest.mark.slow
def test_what_a_reference_costs(real_pairs):
    """Kept on disk next to nothing; in the step exactly one forward pass, which no gradient follows."""
    model, mesh = Model(ModelConfig("llama", 4096, 32, 2, 2, 2, 16, 64, 2048)), make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    params, pairs = model.init(jax.random.key(0)), [pair for pair in real_pairs if len(pair.chosen) < 500][:8]
    costs = {}
    with jax.set_mesh(mesh):
        for name in ("sft", "simpo", "dpo, kept", "dpo, in step", "dpo changed, kept"):
            batch = prices.batch_for(name, pairs, step_benchmark.fullest)
            costs[name] = prices.cost(model, params, batch, name, mesh)
        batch = prices.batch_for("dpo, in step", pairs, step_benchmark.fullest)
        forward = prices.counted(jax.jit(partial(reference_logps, model)), {"reference": params}, batch)
    assert costs["dpo, kept"] <= 1.05 * costs["simpo"]
    assert costs["dpo, in step"] - costs["dpo, kept"] == forward > 0
    assert costs["dpo changed, kept"] < costs["dpo, kept"], "trimmed trees serve it"


def test_model_flops_by_hand():
    shape = ModelConfig("llama", 64, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, d_mlp=48, max_positions=64)
    pair = Encoded("x", *(np.arange(33, dtype=np.int32),) * 2, *(np.zeros(33, bool),) * 2, 1, 1, 1)
    batch = common.pack([plant(pair)], 48)  # 32 tokens that predict one each, and padding
    layer = 32 * 8 * (8 + 4) + 3 * 32 * 48
    assert step_benchmark.model_flops(shape, batch) == 3 * (2 * 3 * layer * 32 + 2 * 32 * 64 * 32 + 4 * 3 * 4 * 8 * (32 * 33 // 2))


@pytest.mark.heavy
def test_a_tree_step_holds_half_of_the_padded_steps_memory(shared_data):
    """8B with a vocabulary of 128k on v5e:4x4, by the TPU compiler's own account; no logits beyond a chunk's."""
    pytest.importorskip("libtpu")
    found = memory.compare([shared_data / "safecoder" / "sec-new-desc.train.jsonl"], shared_data / "tokenizers" / "codegen-350m", "v5e:4x4")
    assert found["pairs"] == 32
    assert found["tree_over_padded"] <= 0.45
    assert 0 < found["largest_logits"] <= logps.CHUNK * memory.LLAMA_8B.vocab_size
