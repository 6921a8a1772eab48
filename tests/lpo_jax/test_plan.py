"""Plans: the train step compiled for TPU slices on this machine."""

import dataclasses
import importlib.util
import json
import math
import os

import jax
import jax.numpy as jnp
import pytest
import yaml
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from foundation.console import captured_stderr
from lpo_jax import cli, config
from lpo_jax.config import ConfigError, MeshConfig, ModelConfig, ModelSource
from lpo_jax.model import hf
from lpo_jax.model.decoder import Model
from lpo_jax.plan import abstract, chips, memory, planner, search
from lpo_jax.plan.result import Plan
from lpo_jax.plan.rows import PlannedRows
from lpo_jax.sharding import MESH_AXES, make_mesh, topology_size
from lpo_jax.train import preflight
from tests.helpers.launch import MANIFEST
from tests.helpers.marks import needs_libtpu
from tests.helpers.paths import REPO
from tests.helpers.plans import a_plan

PODS = sorted((REPO / "configs" / "pods").glob("*.yaml"))
PARAMETERS = {  # as the models' pages on the hub count them
    "codellama_7b": 6_738_546_688,
    "codellama_34b": 33_743_970_304,
    "codellama_70b": 68_976_910_336,
    "qwen2_5_coder_7b": 7_615_616_512,
    "qwen2_5_coder_32b": 32_763_876_352,
    "qwen3_coder_30b_a3b": 30_532_122_624,
    "starcoder2_15b": 15_957_889_024,
}
L, D, H, F, V = 2, 256, 128, 512, 1024


@pytest.fixture
def tiny(tmp_path):
    """A two-layer run on four chips, as YAML."""
    run = {
        "run_dir": str(tmp_path / "run"),
        "data": {"path": str(tmp_path / "none")},
        "model": {
            "new": {
                "family": "llama",
                "vocab_size": V,
                "d_model": D,
                "n_layers": L,
                "n_heads": 2,
                "n_kv_heads": 2,
                "head_dim": H,
                "d_mlp": F,
            }
            | {"max_positions": 4096},
            "compute_dtype": "bfloat16",
            "remat": "block",
        },
        "mesh": {"data": 1, "fsdp": 4, "topology": "v5e:2x2"},
        "plan": {"row_tokens": 512, "pair_tokens": 128},
        "stages": {
            "lpo": {
                "objective": {"name": "lpo", "beta": 1.0, "gamma": 1.0, "alpha": 1.0},
                "optim": {"lr": 1e-4},
                "batch_rows": 8,
                "accumulate": 2,
                "steps": 1,
            }
        },
    }
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(run))
    return file


@needs_libtpu
def test_a_plan_of_two_layers(tiny, tmp_path, capsys, monkeypatch):
    command = ["plan", str(tiny), "--cache", str(tmp_path / "cache"), "--json", str(tmp_path / "plan.json")]
    assert cli.main(command) == 0
    printed, found = capsys.readouterr().out, json.loads((tmp_path / "plan.json").read_text())["stages"]["lpo"]
    assert "FITS" in printed and "v5e:2x2 (4 devices), mesh data=1 fsdp=4 expert=1 tensor=1" in printed
    assert found["fits"] and found["devices"] == 4 and not found["warnings"]

    matrices = 2 * V * D + L * (4 * D * 2 * H + 3 * D * F)
    norms = (2 * L + 1) * D
    assert found["parameters"] == matrices + norms
    held = matrices // 4 + norms  # what every device has: norms are replicated
    assert found["memory"]["parameters"] == found["memory"]["gradients"] == 4 * held
    assert found["memory"]["optimizer"] == 2 * 4 * held + 5 * 4  # two moments; five counters
    assert found["memory"]["activations"] > 0 and found["used"] < found["hbm"]

    tokens, scored = 8 * 512, 8 * 512  # of 384 scored tokens whole chunks of 256 are computed
    forward = 2 * (tokens * (matrices - 2 * V * D) + scored * V * D)
    attention = 2 * 2 * L * 8 * 512 * 512 * 2 * H
    # One block of queries and keys: two products of all of them forwards, seven backwards (the kernels' own recomputation included).
    # The changed tokens' logits are computed twice: four products of one chunk of 256 in each row.
    changed = 4 * 2 * 8 * 256 * V * D
    assert 3 * forward + 0.4 * 3 * attention < found["model_flops"] <= 3 * forward + changed + 4.5 * attention
    # A second forward pass but for the layers' last matrix, which no gradient needs.
    assert forward - 2 * tokens * L * D * F < found["executed_flops"] - found["model_flops"] <= forward + attention
    # In each of two microbatches every matrix is gathered twice in bfloat16, the head once a chunk at most, and its gradient scattered.
    layers = 2 * (matrices - 2 * V * D) * 3 // 4
    gathered, reduced = found["traffic"]["sent"]["all-gather"], found["traffic"]["sent"]["reduce-scatter"]
    assert 2 * 2 * layers <= gathered <= 2 * 2 * layers + 12 * 2 * V * D
    assert 2 * layers <= reduced <= 2 * layers + 8 * 4 * V * D
    assert found["step_seconds"] == max(found["seconds"].values()) and found["seconds"]["compute"] == found["executed_flops"] / 4 / 197e12
    assert found["pairs_per_s"] == 8 * 4 / found["step_seconds"]

    monkeypatch.setattr(planner, "make", lambda *_: pytest.fail("compiled again"))
    assert cli.main(command) == 0
    assert capsys.readouterr().out == printed
    monkeypatch.setattr(planner, "make", lambda *_: (_ for _ in ()).throw(ConfigError("compiled anew")))
    assert cli.main([*command[:2], "stages.lpo.objective.beta=2", *command[2:]]) == 2


def test_what_a_run_would_be_told_is_told_here(tmp_path, capsys, monkeypatch):
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    monkeypatch.setattr(planner, "cached", lambda config, stage, *_: a_plan(stage))
    command = ["plan", str(REPO / "configs/tiny_cpu.yaml"), "mesh.topology=v5e:2x2", f"data.path={tmp_path}", "checkpoint_every_steps=4800"]
    assert cli.main([*command, "mesh.tensor=4"]) == 0
    assert "note: checkpoint_every_steps is 4800: nothing is saved before the end of stage lpo (4800 steps)" in capsys.readouterr().out
    assert cli.main(command) == 2
    assert "e.g. stages.sft.batch_rows=4" in capsys.readouterr().err


@needs_libtpu
def test_what_the_compiler_refuses_fails_in_its_own_words(tiny, tmp_path, capsys, monkeypatch):
    assert cli.main(["plan", str(tiny), "stages.lpo.batch_rows=80000", "--tries", "0", "--cache", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "DOES NOT FIT" in printed and "exceeds available HBM (15.75G)" in printed

    def broken(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: a pass has failed")

    monkeypatch.setattr(abstract, "compile_step", broken)
    assert cli.main(["plan", str(tiny), "--cache", str(tmp_path)]) == 1
    assert "DOES NOT COMPILE. The compiler says:\n  INTERNAL: a pass has failed" in capsys.readouterr().out


def test_wrong_configs_are_named(tiny, tmp_path, capsys, monkeypatch):
    def error(*overrides):
        assert cli.main(["plan", str(tiny), *overrides, "--cache", str(tmp_path)]) == 2
        return capsys.readouterr().err

    assert "set mesh.topology" in error("mesh.topology=null")
    assert "the generation is one of v4, v5e" in error("mesh.topology=v9:2x2")
    assert "the stages of" in error("--stage", "sft")
    if importlib.util.find_spec("libtpu") is not None:
        assert "mesh.topology 'v5e:3x3'" in error("mesh.topology=v5e:3x3")
        assert "doesn't fit 8 devices" in error("mesh.topology=v5e:2x4")
        assert "batch_rows / accumulate is 3: it must be a multiple of data * fsdp * expert = 4" in error("stages.lpo.batch_rows=6")
        assert "can't be laid out" in error("mesh={data: 1, fsdp: 16, tensor: 2, topology: 'v6e:4x8'}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "pip install 'lpo-jax[tpu]'" in error()


@needs_libtpu
@pytest.mark.slow
def test_search_finds_the_fastest_that_fits(tiny, tmp_path, capsys, monkeypatch):
    """With a compiler that has room for policy "attention" without a tensor axis, and is otherwise as fast as its arithmetic."""
    run, asked = config.load(tiny), []
    row = PlannedRows.assumed(run.plan)

    def key(c):
        return c.model.remat, c.mesh, c.stages["lpo"].batch_rows, c.stages["lpo"].accumulate

    work = {key(c.config): int(c.least_seconds * 4 * 197e12) for c in search._candidates(run, "lpo", row)}

    def fake(c, stage, row, directory):
        asked.append(key(c))
        fits = c.model.remat in ("attention", "block") and c.mesh.tensor == 1
        return Plan(
            model="m", parameters=1, trained="all", topology="v5e:2x2", devices=4, mesh={"tensor": c.mesh.tensor}, remat=c.model.remat,
            stage=stage, rows=c.stages[stage].batch_rows, accumulate=1, row=row, memory={}, checkpoint=0, largest=[], model_flops=1,
            verdict="" if fits else "RESOURCE_EXHAUSTED: the total memory required (60.00G) exceeds available HBM (15.75G)",
            executed_flops=work[key(c)], traffic=None, warnings=[], compile_seconds=0.0, versions={},
        )  # fmt: skip

    monkeypatch.setattr(planner, "cached", fake)
    best = search.search(run, "lpo", tmp_path, tries=100)
    assert best is not None and best.model.remat == "attention" and best.mesh.tensor == 1
    printed = capsys.readouterr().out
    assert "does not fit" in printed and "best: mesh.topology=v5e:2x2 mesh.data=" in printed and "model.remat=attention" in printed
    # 60 GiB for so many tokens: a quarter of them, or a policy that keeps less, may fit; half of them can't. Nothing slower is tried.
    assert len(asked) == len(set(asked)) < 20 < len(work)
    asked.clear()
    assert search.search(run, "lpo", tmp_path, tries=1) is None
    assert len(asked) == 1 and "nothing fits" in capsys.readouterr().out


@needs_libtpu
def test_compiler_warnings_are_caught():
    devices = chips.topology_devices("v5e:2x4")
    mesh = jax.make_mesh((4, 2), ("f", "t"), axis_types=(AxisType.Auto,) * 2, devices=devices)

    def crossed(x):
        x = jax.lax.with_sharding_constraint(jnp.sin(x), NamedSharding(mesh, PartitionSpec("f", None, "t")))
        return jax.lax.with_sharding_constraint(jnp.cos(x), NamedSharding(mesh, PartitionSpec(None, ("t", "f"), None)))

    x = jax.ShapeDtypeStruct((8, 128, 512), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("f")))
    with captured_stderr() as printed:
        jax.jit(crossed).trace(x).lower().compile()
    (warning,) = planner._compiler_warnings(printed.getvalue())
    assert "f32[2,128,256]" in warning and "involuntary full rematerialization" in warning


def test_stderr_is_written_out_after_an_error(capfd):
    def write(text, error=None):
        with captured_stderr() as printed:
            os.write(2, text.encode())
            if error:
                raise error
        return printed.getvalue()

    assert write("hidden") == "hidden" and capfd.readouterr().err == ""
    with pytest.raises(RuntimeError):
        write("shown", error=RuntimeError)
    assert capfd.readouterr().err == "shown"
    with pytest.raises(ConfigError):
        write("hidden, for this error says it all", error=ConfigError)
    assert capfd.readouterr().err == ""


def test_a_parameter_that_is_not_cut_is_named():
    """One key/value head can't be cut eight ways: every device holds it whole."""
    shape = ModelConfig("llama", 1024, 4096, n_layers=8, n_heads=32, n_kv_heads=1, head_dim=128, d_mlp=1024, max_positions=64)
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=8), jax.devices()[:8])
    run = config.load(REPO / "configs" / "tiny_cpu.yaml")
    arguments = abstract.arguments(Model(shape), run.stages["lpo"], PlannedRows.assumed(run.plan), mesh)
    assert memory.uncut(arguments, mesh, 15.75 * 2**30) == []
    warnings = memory.uncut(arguments, mesh, 2**30)
    assert len(warnings) == 2 and all(name in " ".join(warnings) for name in ("blocks.k", "blocks.v"))


def test_topologies_have_sizes():
    assert [topology_size(name) for name in ("v5e:4x4", "v5p:2x2x4", "v6e:4x8", "tpu7x:2x2x1")] == [16, 16, 32, 8]
    with pytest.raises(ConfigError, match="write generation and shape"):
        topology_size("v5e-16")
    with pytest.raises(ConfigError, match="has 16 devices, here are 8"):
        make_mesh(MeshConfig(topology="v5e:4x4"))


@pytest.mark.parametrize("path", PODS, ids=lambda p: p.stem)
def test_pod_configs_are_the_published_models_on_whole_slices(path, monkeypatch):
    monkeypatch.chdir(REPO)
    run = config.load(path)
    model = hf.open_model(run.model, planned=True)
    assert sum(x.size for x in jax.tree.leaves(model.shapes())) == PARAMETERS[run.model.shape.split("/")[-1].removesuffix(".json")]
    assert path.stem.startswith(run.model.shape.split("/")[-1].removesuffix(".json")) and path.stem == run.run_dir.removeprefix("runs/")
    mesh = {axis: getattr(run.mesh, axis) for axis in MESH_AXES}
    assert topology_size(run.mesh.topology) == math.prod(mesh.values())
    assert run.mesh.topology.replace(":", "_") in path.stem
    kind = path.stem.rpartition("_")[2]  # else the slice's shape
    assert (kind in ("lora", "int8", "int4", "nf4")) == (run.model.lora is not None)
    assert run.model.quantize is None or run.model.quantize == kind
    assert run.plan.row_tokens <= model.config.max_positions
    preflight.check_rows(run, mesh)


def test_a_run_refuses_weights_of_another_shape_than_planned(tmp_path):
    raw = json.loads((REPO / "configs" / "shapes" / "codellama_7b.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"vocab_size": 32000}))
    source = ModelSource(path=str(tmp_path), shape=str(REPO / "configs" / "shapes" / "codellama_7b.json"))
    with pytest.raises(ConfigError, match="model.shape: .* vocab_size 32016 there, 32000 here"):
        hf.model_config(source)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert hf.model_config(source) == hf.planned_config(source) == hf.model_config(dataclasses.replace(source, shape=None))
    with pytest.raises(ConfigError, match="model.shape: nowhere.json doesn't exist"):
        hf.planned_config(ModelSource(path="x", shape="nowhere.json"))


@needs_libtpu
@pytest.mark.heavy
@pytest.mark.parametrize("path", PODS, ids=lambda p: p.stem)
def test_every_pod_config_fits(path, monkeypatch):
    monkeypatch.chdir(REPO)
    assert cli.main(["plan", str(path.relative_to(REPO))]) == 0
