"""A training step that isn't finite changes nothing; a mixture of experts trains on every mesh as on one device, and says its load."""

import jax
import numpy as np
import pytest

from data_pipeline.feed import Feed
from lpo_jax.batch import TreeBatch
from lpo_jax.config import LoraConfig, MeshConfig
from lpo_jax.model.decoder import Model
from lpo_jax.sharding import make_mesh
from lpo_jax.train import state
from lpo_jax.train.optimizer import optimizer
from lpo_jax.train.placement import to_devices
from lpo_jax.train.step import load_terms, make_train_step
from tests.helpers.training import LPO, MIXTURE, MODEL, OPTIM, assert_same_training


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(seed_shards):
    mesh, model = make_mesh(MeshConfig(2, 2, 2)), Model(MODEL)
    tx = optimizer(OPTIM, 10, model)
    good = TreeBatch.of(next(Feed(seed_shards["trimmed"]).batches(8, 0, 1)))
    bad = good.replace(pair=np.full_like(good.pair, -1), chosen_len=np.zeros_like(good.chosen_len))  # no pair: the loss is 0 / 0
    with jax.set_mesh(mesh):
        init = jax.jit(lambda key: state.new_state(model.init(key), tx), out_shardings=state.state_shardings(model, tx, mesh))
        step = make_train_step(model, LPO, tx, mesh)
        before, counts, after = init(jax.random.key(0)), [], {}
        for name, batch in (("first", good), ("bad", bad), ("worse", bad), ("last", good)):
            before, terms = step(before, {}, to_devices(batch, mesh, 8, 1))
            counts.append((int(before.step), int(before.skipped), int(before.skipped_in_row), float(terms["skipped_steps"][0])))
            after[name] = jax.device_get((before.params, before.opt_state))
    assert counts == [(1, 0, 0, 0), (2, 1, 1, 1), (3, 2, 2, 2), (4, 2, 0, 2)]
    for name in ("bad", "worse"):
        jax.tree.map(np.testing.assert_array_equal, after[name], after["first"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after["last"]))
    assert not np.array_equal(after["last"][0]["embed"], after["first"][0]["embed"])


def trained(shards, model, mesh_config, accumulate=1, steps=3):
    """Losses, parameters and the last terms of a few steps on one batch; all of a LoRA model's adapters begin beside random weights."""
    size = mesh_config.data * mesh_config.fsdp * mesh_config.tensor * mesh_config.expert
    mesh, tx = make_mesh(mesh_config, jax.devices()[:size]), optimizer(OPTIM, steps, model)
    with jax.set_mesh(mesh):
        shapes, places = state.trainable_shapes(model), state.state_shardings(model, tx, mesh)
        random = np.random.default_rng(0)
        params = jax.tree.map(lambda x: 0.1 * random.standard_normal(x.shape, np.float32), shapes)
        frozen = {} if model.lora is None else Model(model.config).init(jax.random.key(1))
        frozen = jax.device_put(frozen, state.frozen_shardings(model, mesh))
        s = jax.jit(lambda params: state.new_state(params, tx), out_shardings=places)(params)
        step, losses = make_train_step(model, LPO, tx, mesh), []
        (batch,) = Feed(shards).batches(8, 0, 1)
        for _ in range(steps):
            s, terms = step(s, frozen, to_devices(batch, mesh, 8, accumulate))
            losses.append(float(terms["loss"][0] / terms["loss"][1]))
    return (losses, jax.device_get(s.params)), terms


EXPERTS = LoraConfig(rank=2, alpha=4.0, targets=r"blocks\.(q|expert_.*)|head")


@pytest.mark.parametrize(
    ("lora", "meshes"),
    [
        (EXPERTS, [(MeshConfig(1, 2, 2, 2), 2)]),
        pytest.param(EXPERTS, [(MeshConfig(1, 8, 1, 1), 1), (MeshConfig(1, 1, 1, 8), 1)], marks=pytest.mark.slow),
        pytest.param(None, [(MeshConfig(2, 2, 2, 1), 2), (MeshConfig(1, 2, 1, 4), 1), (MeshConfig(1, 1, 2, 4), 1)], marks=pytest.mark.slow),
    ],
    ids=["lora", "lora, other meshes", "all"],
)
def test_a_mixture_on_one_device_equals_eight(seed_shards, lora, meshes):
    model = Model(MIXTURE, lora=lora, remat="attention")
    alone, terms = trained(seed_shards["trimmed"], model, MeshConfig(1, 1, 1, 1))
    assert alone[0][-1] < alone[0][0]
    for mesh, accumulate in meshes:
        many, their_terms = trained(seed_shards["trimmed"], model, mesh, accumulate)
        assert_same_training(many, alone)
        for name in ("experts/busiest", "experts/entropy", "experts/idle", "experts/busiest/layer_01"):
            np.testing.assert_allclose(their_terms[name], terms[name], rtol=0.02)
    assert 1 <= terms["experts/busiest"][0] <= 8 / 3 and 0 < terms["experts/entropy"][0] <= 1


def test_load_says_how_uneven_the_experts_are():
    load = np.array([[5, 5, 5, 5], [10, 10, 0, 0], [20, 0, 0, 0]])
    terms = {name: float(value) for name, (value, _) in load_terms(load).items()}
    assert [terms[f"experts/busiest/layer_0{layer}"] for layer in range(3)] == [1, 2, 4]
    np.testing.assert_allclose([terms[f"experts/{name}"] for name in ("busiest", "entropy", "idle")], [7 / 3, 0.5, 5 / 12], rtol=1e-6)
