"""What a LoRA step costs: the arithmetic that it needs, and no gradient of what is frozen."""

import dataclasses
import json
import math
import re

import jax
import pytest
from flax.traverse_util import flatten_dict

from benchmarks import lora as lora_benchmark
from benchmarks import step as step_benchmark
from lpo_jax import config
from lpo_jax.config import AdamW, LoraConfig, MeshConfig, ModelConfig, StageConfig
from lpo_jax.model import hf
from lpo_jax.model.decoder import Model
from lpo_jax.objectives.base import KlConfig
from lpo_jax.objectives.security import Security
from lpo_jax.plan import abstract
from lpo_jax.plan.chips import topology_devices
from lpo_jax.plan.flops import count
from lpo_jax.plan.rows import PlannedRows
from lpo_jax.sharding import make_mesh
from tests.helpers.marks import needs_libtpu
from tests.helpers.paths import REPO


def seven_billion(**changes):
    """CodeLlama-7B's model, its LPO stage and rows on v5e:4x4, remat none; `changes` are its shape's."""
    run = config.load(
        str(REPO / "configs" / "codellama_7b.yaml"), ["model.remat=none", "mesh.topology=v5e:4x4", "stages.lpo.batch_rows=16"]
    )
    mesh, model = make_mesh(run.mesh, topology_devices("v5e:4x4")), hf.open_model(run.model, planned=True)
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, **changes))
    return model, run.stages["lpo"], PlannedRows.assumed(run.plan), mesh


@needs_libtpu
def test_a_lora_step_of_7b_executes_what_it_must():
    """4 for every frozen weight and token (forward, and by its input backward), 6 for every adapter's weight and token, and attention."""
    model, stage, row, mesh = seven_billion()
    found = count(abstract.trace_step(model, stage, row, mesh).jaxpr.jaxpr)

    c, rank = model.config, model.lora.rank
    D, heads, kv_heads = c.d_model, c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    matrices = [(D, heads), (D, kv_heads), (D, kv_heads), (heads, D), (D, c.d_mlp), (D, c.d_mlp), (c.d_mlp, D)]
    tokens, scored = 16 * row.tokens, 16 * row.scored
    frozen = 4 * c.n_layers * sum(into * out for into, out in matrices) * tokens + 4 * D * c.vocab_size * scored
    adapters = 6 * rank * (c.n_layers * sum(into + out for into, out in matrices) * tokens + D * tokens + c.vocab_size * scored)
    # Of each pair of tokens of which one sees the other, forward: q k, p v; backward: the gradients of q, k, v and p, and in each of the two
    # kernels, which keep no p, q k again; the second needs the gradient of p too.
    attention = 9 * 2 * c.n_layers * heads * 16 * (row.tokens * (row.tokens + 1) // 2)
    needed = frozen + adapters + attention
    print(
        f"executed over needed: {found.executed / needed:.4f}; 4NT + 4VS {frozen:.4g}, adapters {adapters:.4g}, attention {attention:.4g}"
    )
    assert found.recomputed == 0
    assert needed <= found.executed <= 1.05 * needed


def made(text, shapes):
    """The parameters of whose shape a program's matrix products and scatters make an array, in any order of its dims."""
    found = re.findall(r"= \(?\w+\[([\d,]+)\]\S* (?:dot|convolution|scatter)\(", text)
    arrays = {tuple(sorted(int(d) for d in dims.split(",") if d != "1")) for dims in found}
    return {name for name, shape in shapes.items() if tuple(sorted(shape)) in arrays}


def gradients(model):
    """The shapes in which a backward pass makes the gradients of the matrices, one layer's each, and of tables."""
    inputs, shapes = model.inputs(), {}
    for path, x in flatten_dict(model.shapes(), sep=".").items():
        dims = x.shape[path.startswith("blocks.") :]
        if len(dims) > 1:
            split = inputs.get(path, 1)
            shapes[path] = math.prod(dims[:split]), math.prod(dims[split:])
    return shapes


@pytest.mark.parametrize(
    "objective", [step_benchmark.LPO, pytest.param(Security(kl=KlConfig("forward", 0.5)), marks=pytest.mark.slow)], ids=["lpo", "security"]
)
def test_a_lora_step_makes_no_gradient_of_a_frozen_matrix(objective):
    shape = ModelConfig("llama", 520, d_model=40, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=12, d_mlp=56, max_positions=64)
    stage = StageConfig(objective, AdamW(lr=1e-3), batch_rows=8, steps=1)
    mesh, row = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), PlannedRows(64, 30, 2, 2.0)

    def text(model):
        return abstract.compile_step(abstract.trace_step(model, stage, row, mesh), mesh).as_text()

    adapted, whole = Model(shape, lora=LoraConfig(4, 8.0)), Model(shape)
    assert made(text(adapted), gradients(adapted)) == set()
    if objective.name == "lpo":
        assert made(text(whole), gradients(whole)) == gradients(whole).keys(), "it sees gradients where there are some"


@needs_libtpu
@pytest.mark.slow
def test_neither_does_one_of_7b_on_a_slice(tmp_path):
    """Two narrower layers of CodeLlama-7B on v5e:4x4, as wide as no chunk of tokens; the vocabulary is cut in 16."""
    model, stage, row, mesh = seven_billion(n_layers=2, d_model=3072, n_heads=24, n_kv_heads=24)
    # The compiler computes a gradient two sixteenths at a time, while it sends others.
    shapes = {"mlp": (2, 192, 11008), "attention": (2, 192, 24, 128), "head": (3072, model.config.vocab_size // 16)}
    found = {}
    for name, own in (("lora", model), ("whole", dataclasses.replace(model, lora=None))):
        abstract.compile_step(abstract.trace_step(own, stage, row, mesh), mesh, str(tmp_path / name))
        (file,) = (tmp_path / name).glob("*.jit_step.*.after_optimizations.txt")
        found[name] = made(file.read_text(), shapes)
    assert found["lora"] == set()
    assert found["whole"] == shapes.keys(), "it sees gradients where there are some"


@pytest.mark.slow
def test_the_benchmark_compares_checkouts(tmp_path, monkeypatch):
    """This one with itself: equal losses, and a ratio."""
    monkeypatch.delenv("LPO_REAL_MODELS", raising=False)
    sizes = ["--pairs", "2", "--max-tokens", "700", "--d-model", "64", "--layers", "1", "--repeats", "1"]
    assert lora_benchmark.main([*sizes, "--against", str(REPO), "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["logged"]["here"] == found["logged"]["against"] and len(found["logged"]["here"]["loss"]) == 2
    assert found["ratios"]["against_over_here"] > 0
