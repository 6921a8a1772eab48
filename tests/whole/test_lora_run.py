"""LoRA runs: only the adapters move, a step is reproducible, and what is exported is what was trained."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

from lpo_jax import cli, config
from lpo_jax.config import LoraConfig, MeshConfig
from lpo_jax.model.decoder import Model
from lpo_jax.sharding import make_mesh
from lpo_jax.train import state
from lpo_jax.train.weights import restore_params
from tests.helpers.families import save_llama
from tests.helpers.training import MODEL, tiny_args

LORA = ["model.lora.rank=4", "model.lora.alpha=8", "model.lora.dropout=0.1", r"model.lora.targets='blocks\.(q|k|v|o|gate|up|down)|head'"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("base"), 32, 48)


@pytest.mark.slow
def test_lora_run_export_and_merge(seed_shards, base, tmp_path, capsys):
    args = [a for a in tiny_args(seed_shards["trimmed"], tmp_path / "run") if not a.startswith("model.new.")]
    tokenizer = seed_shards["trimmed"] / "tokenizer"
    args += ["model.new=null", f"model.path={base}", f"data.tokenizer={tokenizer}", "stages.sft.steps=4", "stages.lpo.steps=4", *LORA]
    assert cli.main(args) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["lpo"]["unchanged_nll"] < summary["init"]["unchanged_nll"] - 0.05
    checkpoint = sum(f.stat().st_size for f in (tmp_path / "run" / "checkpoints").rglob("*") if f.is_file())
    assert checkpoint < 3 * 10**6  # adapters and their moments, twice; the base isn't in it

    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "adapter")]) == 0
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "merged"), "--merge"]) == 0
    assert "peft.PeftModel.from_pretrained" in capsys.readouterr().out
    run = config.from_dict(config.RunConfig, json.loads((tmp_path / "run" / "config.json").read_text()))
    model, adapters, frozen = restore_params(tmp_path / "run", run)
    tokens = np.random.default_rng(0).integers(0, 512, (2, 20))
    ours = model.logits(frozen, jnp.array(tokens), adapters)
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        before = plain(torch.tensor(tokens)).logits.numpy()
        merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(torch.tensor(tokens)).logits
        adapted = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()(torch.tensor(tokens)).logits
    assert np.abs(ours - before).max() > 0.01
    np.testing.assert_allclose(merged, ours, atol=1e-4)
    np.testing.assert_allclose(adapted, ours, atol=1e-4)

    for name in ("adapter", "merged"):
        assert (tmp_path / name / "generation_config.json").is_file()
        card = (tmp_path / name / "README.md").read_text()
        assert f"{summary['lpo']['unchanged_nll']:.3f}" in card and "pairs.jsonl" in card and "rank: 4" in card

    # The adapter, merged, is where a next run begins.
    again = [a for a in args if not a.startswith(("model.lora", "run_dir="))] + [
        f"run_dir={tmp_path / 'again'}",
        f"model.adapter={tmp_path / 'adapter'}",
    ]
    assert cli.main(again) == 0
    after = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert after["init"] == pytest.approx(summary["lpo"], rel=1e-3)


def test_merge_is_for_lora_runs_and_runs_only(tmp_path, capsys):
    assert cli.main(["export", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "give the run_dir of a trained config" in capsys.readouterr().err


def test_adapters_and_their_moments_are_sharded(seed_shards):
    model = Model(MODEL, lora=LoraConfig(rank=4, alpha=8.0, targets=r"blocks\.(q|o|up)"))
    mesh = make_mesh(MeshConfig(2, 2, 2))
    shapes, shardings = state.trainable_shapes(model), state.trainable_shardings(model, mesh)
    assert set(shapes["blocks"]) == {"q", "o", "up"}
    assert shardings["blocks"]["q"]["a"].spec == jax.sharding.PartitionSpec(None, "fsdp", None)
    assert shardings["blocks"]["q"]["b"].spec == jax.sharding.PartitionSpec(None, None, "tensor", None)
