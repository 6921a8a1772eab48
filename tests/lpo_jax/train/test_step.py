"""A training step that isn't finite changes nothing."""

import jax
import numpy as np

from data_pipeline.feed import Feed
from lpo_jax.batch import TreeBatch
from lpo_jax.config import MeshConfig
from lpo_jax.model.decoder import Model
from lpo_jax.sharding import make_mesh
from lpo_jax.train import state
from lpo_jax.train.optimizer import optimizer
from lpo_jax.train.placement import to_devices
from lpo_jax.train.step import make_train_step
from tests.helpers.training import LPO, MODEL, OPTIM


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
