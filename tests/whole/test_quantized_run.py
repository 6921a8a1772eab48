"""A run beside a quantised base: what it computes, on one device and on eight, what it holds, what it exports, and a real model's loss."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from qwix import QArray

from lpo_jax import cli, config
from lpo_jax.config import AdamW, LoraConfig, MeshConfig, ModelConfig, StageConfig
from lpo_jax.decode.load import load_model
from lpo_jax.model.decoder import Model
from lpo_jax.model.moe import MATRICES
from lpo_jax.model.quantized import dequantize
from lpo_jax.objectives.sft import Sft
from lpo_jax.plan import abstract, memory
from lpo_jax.plan.rows import PlannedRows
from lpo_jax.sharding import make_mesh
from lpo_jax.train import state
from lpo_jax.train.weights import restore_params
from tests.helpers import real_models
from tests.helpers.families import save_llama
from tests.helpers.paths import REPO
from tests.helpers.training import read_log, start, tiny_args

WIDE = ModelConfig("qwen2", 256, d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, d_mlp=256, max_positions=512, qkv_bias=True)
MIXTURE = replace(
    WIDE, family="qwen3_moe", qkv_bias=False, qk_norm=True, experts=8, experts_per_token=3, d_expert=64, normalized_experts=True
)
EVERYWHERE = LoraConfig(4, 8.0)
OF_EXPERTS = LoraConfig(4, 8.0, targets=r"blocks\..*|head")


def floats(params):
    """What a quantised base stands for, in float32."""
    is_quantised = lambda x: isinstance(x, QArray)  # noqa: E731
    return jax.tree.map(lambda x: dequantize(x, "float32") if is_quantised(x) else x, params, is_leaf=is_quantised)


@cache
def random_params(config):
    shapes, rng = Model(config).shapes(), np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(x.dtype), shapes)


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


CUT, BY_EXPERT = MeshConfig(1, 4, 2), MeshConfig(1, 2, 2, 2)
CASES = [(WIDE, "nf4", CUT), slow(WIDE, "int8", CUT), slow(WIDE, "int4", CUT), slow(MIXTURE, "nf4", BY_EXPERT)]
CASES += [slow(MIXTURE, "int8", BY_EXPERT), slow(MIXTURE, "int4", CUT), slow(MIXTURE, "nf4", MeshConfig(1, 1, 8))]


@pytest.mark.parametrize(("config", "kind", "mesh"), CASES)
def test_it_computes_what_the_dequantised_model_does(config, kind, mesh):
    """Logits and the adapters' gradients, on one device and cut over eight: also where a mixture's blocks can't be cut as its width is."""
    model = Model(config, lora=OF_EXPERTS if config.experts else EVERYWHERE, quantize=kind, remat="none")
    params = random_params(config)
    base, rng = jax.jit(model.base)(params), np.random.default_rng(1)
    adapters = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(x.dtype), state.trainable_shapes(model))
    tokens, weights = rng.integers(0, 256, (4, 24)), rng.normal(size=(4, 24, 256)).astype(np.float32)

    @jax.jit
    def run(adapters, base):
        def total(adapters):
            logits = model.logits(base, tokens, adapters)
            return (logits * weights).sum(), logits

        gradients, logits = jax.grad(total, has_aux=True)(adapters)
        return logits, gradients

    expected = run(adapters, floats(base))
    found = run(adapters, base)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max()), found, expected)
    plain = run(adapters, params)[0]
    assert 1e-3 < np.abs(plain - expected[0]).max() / np.abs(plain).max() < 0.5  # it is another model, but not a far one
    mesh = make_mesh(mesh)
    with jax.set_mesh(mesh):
        cut = jax.device_put((adapters, base), (state.trainable_shardings(model, mesh), state.base_shardings(model, mesh)))
        many = run(*cut)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max()), many, found)


@pytest.mark.parametrize(("config", "largest"), [(WIDE, 128 * 256), slow(MIXTURE, 8 * 128 * 64)])
def test_codes_are_exchanged_between_devices_and_no_second_copy_is_kept(config, largest):
    """With remat none the backward pass could keep what the forward pass dequantised; gathered floats could be four times as many bytes."""
    mesh = make_mesh(MeshConfig(1, 4, 1), jax.devices()[:4])
    model = Model(config, lora=EVERYWHERE, quantize="int8", remat="none")
    stage, row = StageConfig(Sft(), AdamW(lr=1e-3), batch_rows=4, steps=1), PlannedRows(tokens=96, scored=32, pairs=1, mean_pairs=1.0)
    compiled = abstract.compile_step(abstract.trace_step(model, stage, row, mesh), mesh)
    gathered = re.findall(r"= (\w+)\[([\d,]+)\]\S* all-gather\(", compiled.as_text())
    sizes = {
        dtype: max(int(np.prod([int(d) for d in dims.split(",")])) for other, dims in gathered if other == dtype) for dtype, _ in gathered
    }
    assert sizes["s8"] == largest  # a layer's largest matrix
    assert max(size for dtype, size in sizes.items() if dtype != "s8") <= 128 * 256  # embeddings and head: [256, 128]
    matrices = {name: x for name, x in Model(config).shapes()["blocks"].items() if not name.endswith(("norm", "bias", "router"))}
    stacks = re.findall(r"\b(?:f32|bf16)\[4,([\d,]+)\]", compiled.as_text())  # of all layers
    whole = {x.size // 4 for name, x in matrices.items() if name in MATRICES or not config.experts}
    assert not {np.prod([int(d) for d in dims.split(",")]) for dims in stacks} & whole
    held = memory.held(abstract.arguments(model, stage, row, mesh))
    plain = memory.held(abstract.arguments(Model(config, lora=EVERYWHERE), stage, row, mesh))
    share = sum(x.size for x in matrices.values()) // 4  # numbers on each device; an output's scale stands for 64 to 256 of them
    assert 2.85 * share < plain["parameters"] - held["parameters"] < 3 * share


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("base"), 64, 96)


def quantised(base, shards):
    return [
        "model.new=null", f"model.path={base}", f"data.tokenizer={shards / 'tokenizer'}", "model.lora={rank: 4, alpha: 8}", "model.quantize=nf4",
        "stages.sft.steps=4", "stages.lpo.steps=6", "stages.lpo.objective={name: dpo, beta: 0.5, tokens: changed}",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_goes_on_and_its_adapters_are_merged_into_the_float_weights(seed_shards, base, tmp_path, capsys):
    """With a reference: in a first stage the quantised base, in a second a copy of the adapters."""
    shards = seed_shards["trimmed"]
    more = [*quantised(base, shards), "stages.sft.objective={name: dpo, beta: 0.5, tokens: changed}", "checkpoint_every_steps=2"]
    for name in ("straight", "killed"):
        process = start(shards, tmp_path / name, *more)
        metrics = tmp_path / name / "metrics.jsonl"
        deadline = time.time() + 900
        while name == "killed" and time.time() < deadline and not (metrics.is_file() and '"total_step": 7' in metrics.read_text()):
            time.sleep(0.01)
        if name == "killed":
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
            process = start(shards, tmp_path / name, *more)
        text, _ = process.communicate(timeout=900)
        assert process.returncode == 0, text
    assert read_log(tmp_path / "killed") == read_log(tmp_path / "straight")

    run = config.from_dict(config.RunConfig, json.loads((tmp_path / "killed" / "config.json").read_text()))
    model, adapters, frozen = restore_params(tmp_path / "killed", run)
    assert frozen["blocks"]["up"].qvalue.dtype == jnp.uint4
    assert cli.main(["export", str(tmp_path / "killed"), str(tmp_path / "merged"), "--merge"]) == 0
    said = "adapters trained beside nf4, merged into the weights as they were before"
    assert said in capsys.readouterr().out and said in (tmp_path / "merged" / "README.md").read_text()
    tokens = np.random.default_rng(0).integers(0, 512, (2, 20))
    with torch.no_grad():
        merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(torch.tensor(tokens)).logits.numpy()
    plain = Model(model.config, lora=model.lora)
    weights = config.from_dict(config.RunConfig, config.to_dict(run) | {"model": config.to_dict(run.model) | {"quantize": None}})
    np.testing.assert_allclose(
        merged, plain.logits(restore_params(tmp_path / "killed", weights)[2], jnp.array(tokens), adapters), atol=1e-4
    )
    assert np.abs(merged - model.logits(frozen, jnp.array(tokens), adapters)).max() > 1e-3
    served = load_model(str(tmp_path / "killed"), make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), "float32")
    np.testing.assert_allclose(served.model.logits(served.params, jnp.array(tokens)), merged, atol=1e-4)


@pytest.mark.slow
def test_a_run_of_eight_devices_beside_a_quantised_base(seed_shards, base, tmp_path):
    shards = seed_shards["trimmed"]
    args = [a for a in tiny_args(shards, tmp_path / "run") if not a.startswith("model.new.")] + quantised(base, shards)
    assert cli.main([*args, "mesh.data=1", "mesh.fsdp=4", "mesh.tensor=2"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["sft"]["unchanged_nll"] < summary["init"]["unchanged_nll"] - 0.05


def measured(tmp_path, model, kind, steps):
    """What the benchmark says of a real model."""
    path, out = real_models.find(model), tmp_path / f"{model}-{kind}"
    more = [] if kind == "float32" else ["--quantize", kind]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.quantized", str(path), "--steps", str(steps), "--json", str(out), *more], check=True, cwd=REPO
    )
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("model", "most"), [("smollm2-135m-instruct", 0.12), ("qwen2.5-coder-0.5b-instruct", 0.035)])
def test_what_a_real_base_loses_before_any_step(model, most, tmp_path):
    """To 8 bits nearly nothing; to 4 bits less, the bigger the model is."""
    found = {kind: measured(tmp_path, model, kind, 0)["base_loss"] for kind in ("float32", "int8", "nf4")}
    assert abs(found["int8"] / found["float32"] - 1) < 0.01
    assert 0 < found["nf4"] / found["float32"] - 1 < most


@pytest.mark.slow
def test_fifty_steps_beside_a_real_quantised_base(tmp_path):
    """int8 loses as the float base does. Reading never holds the float model."""
    found = {kind: measured(tmp_path, "smollm2-135m-instruct", kind, 50) for kind in ("float32", "int8", "nf4")}
    whole = found["float32"]["float_model_bytes"]
    # No code of 4 bits is within 2 % of a model so small (docs/memory.md). CPUs hold a 4-bit number in a byte.
    for kind, most in (("int8", 0.02), ("nf4", 0.10)):
        assert abs(found[kind]["last_loss"] / found["float32"]["last_loss"] - 1) < most
        assert found[kind]["device_bytes"] < 0.45 * whole
        assert found[kind]["read_peak_bytes"] < whole
