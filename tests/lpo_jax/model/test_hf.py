"""Importing a big checkpoint needs hardly more host memory than the model itself. On fake devices the devices' own arrays are host memory."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from lpo_jax.config import MeshConfig, ModelConfig
from lpo_jax.model import hf
from lpo_jax.model.decoder import Model
from lpo_jax.model.translate import config_to_hf
from lpo_jax.sharding import make_mesh
from lpo_jax.train.state import param_shardings
from tests.helpers.paths import REPO

SCRIPT = """
import resource, sys
import jax
from lpo_jax.config import MeshConfig
from lpo_jax.model import hf
from lpo_jax.model.decoder import Model
from lpo_jax.sharding import make_mesh
from lpo_jax.train.state import param_shardings
model = Model(hf.read_config(sys.argv[1]))
shardings = param_shardings(model, make_mesh(MeshConfig(data=1, fsdp=8)))
jax.block_until_ready(jax.jit(lambda: 0)())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
params = jax.block_until_ready(hf.read_params(sys.argv[1], model, shardings))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
size = sum(x.nbytes for x in jax.tree.leaves(params))
print(size, (peak - before) * 1024)
"""


def test_files_of_many_experts_are_opened_for_a_layer_not_for_a_tensor(tmp_path, monkeypatch):
    config = ModelConfig("qwen3_moe", 64, 16, 2, 2, 2, 8, 16, max_positions=64, qk_norm=True, experts=40, experts_per_token=2, d_expert=8)
    model, opens = Model(config), []
    params = model.init(jax.random.key(0))
    monkeypatch.setattr(hf, "MAX_FILE_BYTES", 60_000)
    hf.write_params(tmp_path, model, params)
    files, tensors = len(list(tmp_path.glob("*.safetensors"))), len(hf.tensor_shapes(model))
    assert files > 2 and tensors > 240
    opened = hf.opened
    monkeypatch.setattr(hf, "opened", lambda file, *more: opens.append(file) or opened(file, *more))
    again = hf.read_params(tmp_path, model, param_shardings(model, make_mesh(MeshConfig(1), jax.devices()[:1])))
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert len(opens) < 60


@pytest.mark.slow
def test_peak_memory(tmp_path):
    config = ModelConfig("llama", 32000, d_model=1536, n_layers=24, n_heads=12, n_kv_heads=4, head_dim=128, d_mlp=4096, max_positions=2048)
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(config)))
    model = Model(config)
    rng = np.random.default_rng(0)
    shapes = hf.tensor_shapes(model)
    names, index = list(shapes), {}
    for number in range(0, len(names), 16):
        file = f"model-{number}.safetensors"
        save_file({n: rng.standard_normal(shapes[n], np.float32) for n in names[number : number + 16]}, tmp_path / file)
        index |= dict.fromkeys(names[number : number + 16], file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    env = os.environ | {"PYTHONPATH": str(REPO)}
    run = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], env=env, capture_output=True, text=True, check=True)
    size, peak = map(int, run.stdout.split())
    print(f"checkpoint {size / 1e9:.2f} GB, peak of the import {peak / 1e9:.2f} GB, ratio {peak / size:.2f}")
    assert size > 2e9 and peak < 1.3 * size + 3 * 4 * max(np.prod(s) for s in shapes.values()) and peak < 1.5 * size
