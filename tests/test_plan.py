"""Plans: the train step compiled for TPU topologies on this machine."""

import importlib.util

import jax
import pytest

from lpo_jax import plan
from lpo_jax.config import ConfigError, MeshConfig, ModelConfig, ObjectiveConfig, OptimConfig, StageConfig
from lpo_jax.model.decoder import Model
from lpo_jax.sharding import make_mesh

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed")

SHAPE = ModelConfig("llama", 1024, d_model=256, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=128, d_mlp=512, max_positions=4096)
OBJECTIVE = ObjectiveConfig("lpo", beta=1.0, gamma=1.0, alpha=1.0)
ROW = plan.RowShape(tokens=512, scored=384, pairs=8)


def stage(batch_rows, accumulate=1):
    return StageConfig(OBJECTIVE, OptimConfig(1e-4), batch_rows, accumulate, steps=1)


@needs_libtpu
def test_compiles_the_train_step_for_a_topology():
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1), plan.topology_devices("v5e:2x2"))
    model = Model(SHAPE, "bfloat16", "float32", "block")
    kinds = plan.memory(plan.compile_step(model, stage(8, 2), ROW, mesh), plan.abstract_arguments(model, stage(8, 2), ROW, mesh))
    norms = (2 * 2 + 1) * 256  # replicated; everything else is cut four ways
    held = (sum(x.size for x in jax.tree.leaves(model.shapes())) - norms) // 4 + norms
    assert kinds["parameters"] == 4 * held
    assert kinds["optimizer"] == 2 * 4 * held + 3 * 4  # two moments, three counters
    assert 0 <= kinds["padding"] < kinds["batch"]
    assert kinds["temporaries"] > 4 * held  # float32 sums of gradients, at least


@needs_libtpu
def test_names_a_topology_that_does_not_exist():
    with pytest.raises(ConfigError, match="mesh.topology 'v5e-16'"):
        plan.topology_devices("v5e-16")
