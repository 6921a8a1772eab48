"""The loop: one device equals eight, accumulation equals one big batch, and a killed run ends as if undisturbed."""

import json
import random
import re
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipeline.feed import Feed
from lpo_jax import cli, config
from lpo_jax.config import ConfigError, MeshConfig
from lpo_jax.model.decoder import Model
from lpo_jax.objectives.sft import Sft
from lpo_jax.sharding import make_mesh, spec
from lpo_jax.train import state
from lpo_jax.train.optimizer import optimizer
from lpo_jax.train.placement import to_devices
from lpo_jax.train.step import make_train_step
from lpo_jax.train.weights import restore_params
from tests.helpers.training import LPO, MODEL, OPTIM, start, tiny_args


def run_steps(feed, mesh_config, steps, rows=8, accumulate=1, objective=LPO, model=Model(MODEL)):
    """Losses and final parameters of a few steps."""
    devices = jax.devices()[: abs(mesh_config.data * mesh_config.fsdp * mesh_config.tensor)]
    mesh, tx = make_mesh(mesh_config, devices), optimizer(OPTIM, steps, model)
    with jax.set_mesh(mesh):
        shardings = state.state_shardings(model, tx, mesh)
        init = jax.jit(lambda key: state.new_state(model.init(key), tx), out_shardings=shardings)
        s = init(jax.random.key(0))
        step = make_train_step(model, objective, tx, mesh)
        losses = []
        for batch in feed.batches(rows, 0, steps):
            s, terms = step(s, {}, to_devices(batch, mesh, rows, accumulate))
            losses.append(float(terms["loss"][0] / terms["loss"][1]))
    return losses, s, shardings


@pytest.mark.slow
def test_one_device_equals_eight(seed_shards, capfd):
    feed = Feed(seed_shards["trimmed"])
    alone, params = run_steps(feed, MeshConfig(1, 1, 1), 10)[:2]
    assert len(set(alone)) == 10
    for mesh in (MeshConfig(8, 1, 1), MeshConfig(1, 8, 1), MeshConfig(2, 2, 2)):
        losses, many, _ = run_steps(feed, mesh, 10)
        np.testing.assert_allclose(losses, alone, rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-3), many.params, params.params)
    assert "rematerialization" not in capfd.readouterr().err


def test_every_moment_has_its_parameters_sharding(seed_shards):
    _, s, shardings = run_steps(Feed(seed_shards["trimmed"]), MeshConfig(2, 2, 2), 1)
    adam = next(x for x in jax.tree.leaves(s.opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState)) if hasattr(x, "mu"))
    for moment in (adam.mu, adam.nu):
        jax.tree.map(
            lambda m, p: (m.sharding.is_equivalent_to(p.sharding, p.ndim)) or pytest.fail(f"{m.sharding} != {p.sharding}"), moment, s.params
        )
    jax.tree.map(lambda x, wanted: x.sharding.is_equivalent_to(wanted, x.ndim) or pytest.fail(str(x.sharding)), s, shardings)
    q = s.params["blocks"]["q"].sharding
    assert q.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor", None)
    cut = [p for p in jax.tree.leaves(s.params) if p.sharding.shard_shape(p.shape) != p.shape]
    assert sum(p.size for p in cut) > 0.95 * sum(p.size for p in jax.tree.leaves(s.params))


@pytest.mark.slow
@pytest.mark.parametrize("objective", [pytest.param(LPO, id="lpo"), pytest.param(Sft(), id="sft")])
def test_accumulation_equals_one_big_batch(seed_shards, objective):
    feed = Feed(seed_shards["trimmed"])
    (whole, a, _), (cut, b, _) = (run_steps(feed, MeshConfig(2, 1, 1), 3, accumulate=n, objective=objective) for n in (1, 4))
    np.testing.assert_allclose(cut, whole, rtol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4), a.params, b.params)


def test_what_does_not_divide_is_replicated_and_said(caplog):
    assert spec(("kv_heads", "embed"), (1, 6), {"data": 1, "fsdp": 2, "tensor": 4}) == jax.sharding.PartitionSpec(None, "fsdp")
    assert "'kv_heads' of size 1 is not divisible by tensor=4: replicated" in caplog.text
    with pytest.raises(ConfigError, match="mesh data=3 fsdp=1 expert=1 tensor=1 doesn't fit 8 devices: its axes must multiply to 8"):
        make_mesh(MeshConfig(3, 1, 1))
    with pytest.raises(ConfigError, match="tensor=3 doesn't fit 8 devices: its other axes must multiply to one of 1, 2, 4, 8$"):
        make_mesh(MeshConfig(-1, 1, 3))
    with pytest.raises(ConfigError, match="tensor=3 doesn't fit 1 device: its other axes must multiply to 1$"):
        make_mesh(MeshConfig(-1, 1, 3), jax.devices()[:1])
    with pytest.raises(ConfigError, match="at most one is -1"):
        make_mesh(MeshConfig(-1, -1, 1))


# --- Whole runs, through the command line.


def final_params(run_dir: Path):
    run = config.from_dict(config.RunConfig, json.loads((run_dir / "config.json").read_text()))
    return restore_params(run_dir, run)[1]


@pytest.mark.slow
def test_kill_9_and_resume_is_bit_equal(seed_shards, tmp_path):
    straight = start(seed_shards["trimmed"], tmp_path / "straight")
    text, _ = straight.communicate(timeout=300)
    assert straight.returncode == 0, text

    rng = random.Random(time.time_ns())
    target = rng.randrange(2, 18)
    print(f"killing after step {target}")
    killed = start(seed_shards["trimmed"], tmp_path / "killed")
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.time() + 200
    while time.time() < deadline and killed.poll() is None:
        if metrics.is_file() and len(metrics.read_text().splitlines()) >= target:
            break
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL, "the run ended before it could be killed"

    resumed = start(seed_shards["trimmed"], tmp_path / "killed")
    text, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, text
    jax.tree.map(np.testing.assert_array_equal, final_params(tmp_path / "killed"), final_params(tmp_path / "straight"))

    logs = [[json.loads(line) for line in (tmp_path / d / "metrics.jsonl").read_text().splitlines()] for d in ("killed", "straight")]
    for log in logs:
        for line in log:
            line.pop("tokens_per_s", None)
    assert logs[0] == logs[1]
    assert [line["total_step"] for line in logs[0] if line["group"] == "train"] == list(range(1, 21))
    assert [line["total_step"] for line in logs[0] if line["group"] == "heldout"] == [0, 5, 8, 13, 18, 20]
    summaries = [json.loads((tmp_path / d / "summary.json").read_text()) for d in ("killed", "straight")]
    assert summaries[0] == summaries[1]
    assert list(summaries[0]) == ["init", "sft", "lpo", "names"]
    assert set(summaries[0]["lpo"]) == set(summaries[0]["names"]) == {"pair_accuracy", "margin", "changed_nll", "unchanged_nll"}


@pytest.mark.slow
def test_twenty_kills_change_nothing(seed_shards, tmp_path):
    from tests.helpers import chaos

    straight = chaos.undisturbed(seed_shards["trimmed"], tmp_path)
    killed, done = chaos.torture(seed_shards["trimmed"], tmp_path, kills=20, seed=time.time_ns())
    assert sum(half_written for _, _, half_written in done) >= 3
    chaos.compare(killed, straight)


@pytest.mark.slow
def test_run_resume_export_and_refusals(seed_shards, tmp_path, capsys):
    args = tiny_args(seed_shards["trimmed"], tmp_path / "run")
    assert cli.main(args) == 0
    first = capsys.readouterr().out
    assert "preference accuracy" in first and "report.html" in first
    assert (tmp_path / "run" / "report.html").is_file()
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))

    assert cli.main(args) == 0  # a finished run is only reported again
    assert capsys.readouterr().out == first

    assert cli.main([*args, "stages.lpo.optim.lr=1e-9"]) == 2
    said = capsys.readouterr().err
    assert "holds a run with other settings; choose a new run_dir" in said and "stages.lpo.optim.lr: 0.002 there, 1e-09 here" in said
    elsewhere = [f"data.path={seed_shards['untrimmed']}" if a.startswith("data.path=") else a for a in args]
    assert cli.main(elsewhere) == 2
    assert "its checkpoints were trained on other data" in capsys.readouterr().err

    import transformers

    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "run")]) == 2
    assert "and no earlier export; give an empty directory to export to" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "hf")]) == 0
    files = {file.name: file.read_bytes() for file in (tmp_path / "hf").iterdir()}
    (tmp_path / "hf" / "model-00002-of-00002.safetensors").touch()  # as a larger export would leave it
    (tmp_path / "hf" / "notes.txt").write_text("mine")
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "hf")]) == 0
    assert {file.name: file.read_bytes() for file in (tmp_path / "hf").iterdir()} == files | {"notes.txt": b"mine"}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    import torch

    ids = tokenizer("def f(x):\n    return x", return_tensors="pt").input_ids
    run = config.from_dict(config.RunConfig, json.loads((tmp_path / "run" / "config.json").read_text()))
    model, params, _ = restore_params(tmp_path / "run", run)
    with torch.no_grad():
        np.testing.assert_allclose(model.logits(params, jnp.array(ids.numpy())), theirs(ids).logits.numpy(), atol=1e-4)

    # the exported directory is a model to train on
    hf_args = tiny_args(seed_shards["trimmed"], tmp_path / "again")
    hf_args = [a for a in hf_args if not a.startswith("model.new.")] + ["model.new=null", f"model.path={tmp_path / 'hf'}"]
    assert cli.main(hf_args) == 0
    before, after = (json.loads((tmp_path / d / "summary.json").read_text()) for d in ("run", "again"))
    assert after["init"] == pytest.approx(before["lpo"], rel=1e-4)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["stages.lpo.objective.name=simpo", "stages.lpo.objective.alpha=null"],
            "objective simpo scores whole rejected answers.*--untrimmed",
        ),
        (["stages.lpo.objective.mode=reference"], "mode reference weighs unchanged rejected tokens.*--masks reference --untrimmed"),
        (["stages.lpo.optim.lrr=1"], "unknown key stages.lpo.optim.lrr: did you mean 'lr'?"),
        (["model.new.max_positions=64"], "the model was made for 64 tokens: build the shards with --row-tokens 64"),
        (["model.new.vocab_size=100"], "tokenizer has 512 entries, the model's vocabulary 100"),
        (["stages.sft.accumulate=8"], "batch_rows / accumulate is 1: it must be a multiple of data \\* fsdp \\* expert = 8"),
        (["data.path=/nowhere"], "no such file; build the set with `lpo-data build`"),
        (["run_dir=/proc/nowhere"], "run_dir /proc/nowhere can't be written"),
    ],
)
def test_bad_input_is_one_line(seed_shards, tmp_path, capsys, more, message):
    assert cli.main(tiny_args(seed_shards["trimmed"], tmp_path / "run", *more)) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lpo: error: ")]
    assert len(error) == 1
    assert re.search(message, error[0])
    assert not (tmp_path / "run" / "config.json").exists()  # the directory is still free for the corrected config


def test_shards_of_another_tokenizer_are_refused(seed_shards, tmp_path, capsys):
    from data_pipeline import tokenizer

    tokenizer.train(["something else"] * 9, 300).save(tmp_path / "other")
    assert cli.main(tiny_args(seed_shards["trimmed"], tmp_path / "run", f"data.tokenizer={tmp_path / 'other'}")) == 2
    assert "was built with another tokenizer" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen", "codellama"])
def test_real_pairs_with_a_real_tokenizer_train(shared_data, tmp_path, name):
    from data_pipeline.build import BuildOptions, build

    files = [shared_data / "safecoder" / "sec-new-desc.train.jsonl", shared_data / "sven" / "train.python.jsonl"]
    manifest = build(files, tmp_path / "data", str(shared_data / "tokenizers" / name), BuildOptions(row_tokens=512, heldout=0.01))
    more = [f"model.new.vocab_size={manifest.vocab_size}", "model.new.d_model=16", "stages.sft.steps=1", "stages.lpo.steps=2"]
    assert cli.main(tiny_args(tmp_path / "data", tmp_path / "run", *more)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["init"]["unchanged_nll"] == pytest.approx(np.log(manifest.vocab_size), rel=0.05)  # a fresh model knows nothing
    assert summary["lpo"]["unchanged_nll"] < summary["init"]["unchanged_nll"]


@pytest.mark.slow
def test_dtypes(seed_shards):
    """bfloat16 compute keeps float32 master weights and moments; bfloat16 weights keep float32 losses; both stay near float32."""
    feed = Feed(seed_shards["trimmed"])
    losses = {}
    for compute, param in (("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")):
        losses[compute, param], s, _ = run_steps(feed, MeshConfig(1, 1, 1), 2, rows=2, model=Model(MODEL, compute, param))
        assert {str(x.dtype) for x in jax.tree.leaves(s.params)} == {param}
    np.testing.assert_allclose(losses["bfloat16", "float32"], losses["float32", "float32"], rtol=0.01)
    np.testing.assert_allclose(losses["bfloat16", "bfloat16"], losses["float32", "float32"], rtol=0.02)
