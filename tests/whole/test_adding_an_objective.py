"""docs/adding_an_objective.md: the file and the line that it shows are an objective; its gradient is right, and it trains."""

import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.row import RowShape, pad
from data_pipeline.trees import Encoded, join, plant
from lpo_jax.batch import TreeBatch
from lpo_jax.config import ModelConfig
from lpo_jax.model.decoder import Model
from lpo_jax.objectives import OBJECTIVES
from lpo_jax.train.step import objective_terms, output
from tests.helpers.paths import REPO
from tests.helpers.shown import blocks, commands_of, words_of

PAGE = (REPO / "docs" / "adding_an_objective.md").read_text()
FILE, CLAIM = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(LINE,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)


def test_it_is_short():
    assert len(FILE.splitlines()) < 40
    assert len(LINE.splitlines()) == 1


@pytest.mark.parametrize("claimed", [False, True])
def test_its_gradient_is_right_whether_or_not_it_claims_what_is_linear(claimed, monkeypatch):
    """The step's gradient equals the one through whole softmaxes."""
    module = types.ModuleType("focal")
    monkeypatch.setitem(sys.modules, "focal", module)
    exec(FILE + CLAIM, module.__dict__)
    record = dataclasses.replace(module.OBJECTIVE, linear=module.linear) if claimed else module.OBJECTIVE
    monkeypatch.setitem(OBJECTIVES, "focal", record)
    options, model = module.Focal(focus=1.5), Model(ModelConfig("llama", 60, 16, 2, 2, 2, 8, 24, 64))
    batch, params = small_batch(), model.init(jax.random.key(0))

    def dense(params):
        hidden, head, *_ = output(model, params, {}, batch)
        logps = jax.nn.log_softmax(jnp.take_along_axis(hidden, batch.source[..., None], axis=1) @ head)
        logps = jnp.take_along_axis(logps, batch.target[..., None], axis=-1)[..., 0]
        return record.terms(jnp.where(batch.pair < 0, 0, logps), batch, options)["loss"][0]

    def ours(params):
        return objective_terms(model, options, params, {}, batch)["loss"][0]

    (value, expected), (computed, found) = (jax.jit(jax.value_and_grad(loss))(params) for loss in (dense, ours))
    assert float(computed) == pytest.approx(float(value), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), found, expected)


def small_batch():
    """Three pairs that differ in one to three tokens, in one row with padding."""
    rng, planted = np.random.default_rng(0), []
    for name, changed in (("a", 1), ("b", 2), ("c", 3)):
        chosen = rng.integers(1, 60, 14).astype(np.int32)
        mask = np.isin(np.arange(14), 7 + 2 * np.arange(changed))
        rejected = np.where(mask, 1 + chosen % 59, chosen).astype(np.int32)
        planted.append(plant(Encoded(name, chosen, rejected, mask, mask, 4, 6, 6)))
    columns = join(planted)
    return TreeBatch.of(pad([columns], RowShape(len(columns["tokens"]) + 5, len(columns["source"]) + 3, 4)))


@pytest.mark.slow
def test_it_trains(seed_shards, tmp_path):
    for package in ("foundation", "judges", "data_pipeline", "lpo_jax", "configs"):
        shutil.copytree(REPO / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "lpo_jax" / "objectives" / "focal.py").write_text(FILE)
    table = tmp_path / "lpo_jax" / "objectives" / "__init__.py"
    table.write_text(re.sub(r"TABLE = \(.*\n", lambda start: start[0] + LINE, table.read_text()))
    settings = [
        "run_dir=run", f"data.path={seed_shards['trimmed']}", "eval_rows=8", "report_pairs=1", "checkpoint_every_steps=1000",
        "model.new={family: llama, vocab_size: 512, d_model: 32, n_layers: 1, n_heads: 2, n_kv_heads: 1, head_dim: 16, d_mlp: 32, "
        "max_positions: 512}",
        "stages={lpo: {optim: {lr: 1e-2}, batch_rows: 4, steps: 10}}", "stages.lpo.objective={name: focal, focus: 1.0}",
    ]  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(tmp_path), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    said = {}
    for line in commands_of("\n".join(blocks(PAGE, ("sh",)))):
        _, *words = words_of(line)
        command = [sys.executable, "-m", "lpo_jax.cli", *words, *(settings if words[0] == "train" else [])]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        said[words[0]] = done.stdout
    assert "how little a changed token counts" in said["config"]
    losses = [line["loss"] for line in map(json.loads, (tmp_path / "run" / "metrics.jsonl").open()) if line["group"] == "train"]
    assert len(losses) == 10
    assert all(map(math.isfinite, losses))
    assert sum(losses[-3:]) < sum(losses[:3])
    assert "focal loss on changed tokens" in (tmp_path / "run" / "report.html").read_text()
