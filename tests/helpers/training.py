"""A tiny run: its model, its command line, and the same as a process of its own."""

import json
import os
import subprocess
import sys

import numpy as np
from flax.traverse_util import flatten_dict

from lpo_jax import config
from lpo_jax.config import AdamW, ModelConfig
from lpo_jax.objectives.lpo import Lpo
from tests.helpers.paths import REPO

MODEL = ModelConfig("qwen2", 512, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_mlp=64, max_positions=1024, qkv_bias=True)
LPO = Lpo(beta=5.0, gamma=1.0, alpha=1.0)
OPTIM = AdamW(lr=1e-2, weight_decay=0.1)


def tiny_args(shards, run_dir, *more):
    return [
        "train", str(REPO / "configs" / "tiny_cpu.yaml"), f"run_dir={run_dir}", f"data.path={shards}", "model.new.vocab_size=512",
        "model.new.d_model=32", "model.new.n_layers=1", "model.new.n_heads=2", "model.new.n_kv_heads=1", "model.new.head_dim=16",
        "model.new.d_mlp=32", "mesh.data=8", "eval_rows=8", "stages.sft.epochs=null", "stages.sft.steps=8", "stages.sft.batch_rows=8",
        "stages.lpo.epochs=null", "stages.lpo.steps=12", "stages.lpo.batch_rows=8", "checkpoint_every_steps=3", "eval_every_steps=5",
        "report_pairs=2", *more,
    ]  # fmt: skip


def load(args):
    """The run of such a command line."""
    return config.load(args[1], args[2:])


def start(shards, run_dir, *more):
    """The same as a process of its own, on one device."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(run_dir.parent / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    env = os.environ | cache | {"XLA_FLAGS": "", "PYTHONPATH": str(REPO)}
    command = [
        sys.executable,
        "-m",
        "lpo_jax.cli",
        *tiny_args(shards, run_dir, "mesh.data=1", "stages.sft.batch_rows=1", "stages.lpo.batch_rows=1", *more),
    ]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def assert_same_training(found, expected):
    """Losses and trained parameters, of each; sums are added up in another order on other devices."""
    (losses, params), (alone, own) = found, expected
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    for path, x in flatten_dict(params, sep=".").items():
        np.testing.assert_allclose(x, flatten_dict(own, sep=".")[path], atol=5e-3, err_msg=path)


def read_log(run_dir):
    """metrics.jsonl, without how fast it went."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_s"} for line in lines]
