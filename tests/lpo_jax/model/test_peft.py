"""Adapters that are damaged: one line that names the file, or the adapter as it was. Those of a mixture's experts, against PEFT."""

import dataclasses
import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

from foundation.errors import UserError
from lpo_jax.config import ConfigError, LoraConfig, MeshConfig
from lpo_jax.model import adapters, hf, lora
from lpo_jax.model.decoder import Model
from lpo_jax.model.peft import load_peft, save_peft
from lpo_jax.sharding import make_mesh
from lpo_jax.train.state import param_shardings
from tests.helpers import damage
from tests.helpers.families import FAMILIES, TOKENS, torch_base, torch_logits
from tests.helpers.vocabularies import shape

CASES = list(damage.adapters())
random.Random(0).shuffle(CASES)
SOME = 250


@pytest.mark.parametrize("some", [slice(SOME), pytest.param(slice(SOME, None), marks=pytest.mark.slow)], ids=["some", "others"])
def test_a_damaged_adapter_is_refused_or_the_same(tmp_path, some):
    model, config = Model(shape(97)), LoraConfig(rank=2, alpha=4.0, targets="blocks.(q|v)")
    made = jax.tree.map(lambda x: np.random.default_rng(x.size).standard_normal(x.shape, np.float32), adapters.init(jax.random.key(0), model, config))  # fmt: skip
    sound, hurt, wrong = tmp_path / "sound", tmp_path / "hurt", {}
    save_peft(sound, model, made, config, "base")
    base, settings = load_peft(sound, model)
    for name, harm in CASES[some]:
        shutil.rmtree(hurt, ignore_errors=True)
        shutil.copytree(sound, hurt)
        harm(hurt)
        try:
            found, its = load_peft(hurt, model)
        except UserError as error:
            if str(hurt) not in str(error) or "\n" in str(error) or len(str(error)) > 2000:
                wrong[name] = str(error)
            continue
        same = jax.tree.structure(found) == jax.tree.structure(base) and jax.tree.all(jax.tree.map(np.allclose, found, base))
        # Another alpha that an adapter may have is another adapter; so is one with a scale that is computed otherwise.
        if not (same and its.rank == settings.rank) and not any(
            key in name for key in ("lora_alpha", "alpha_pattern", "use_rslora", "flipped")
        ):
            wrong[name] = f"{its} instead of {settings}"
    assert len(CASES) > 350 and wrong == {}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A tiny mixture of experts on the disk, as ours."""
    directory = tmp_path_factory.mktemp("mixture")
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(FAMILIES["qwen3_moe"]()).save_pretrained(directory)
    model = Model(hf.read_config(directory))
    return directory, model, hf.read_params(directory, model, param_shardings(model, make_mesh(MeshConfig(1), jax.devices()[:1])))


def drawn(model, config):
    """Adapters that look trained."""
    made = jax.eval_shape(lambda: adapters.init(jax.random.key(0), model, config))
    return jax.tree.map(lambda x: 0.2 * np.random.default_rng(x.size).standard_normal(x.shape, np.float32), made)


@pytest.mark.parametrize("targets", [LoraConfig(1, 1.0).targets, r"blocks\.(q|expert_.*)"], ids=["default", "experts"])
def test_peft_reads_adapters_of_a_mixture(mixture, tmp_path, targets):
    directory, model, params = mixture
    config = LoraConfig(rank=3, alpha=7.0, targets=targets)
    made = drawn(model, config)
    assert ("expert_gate" in made["blocks"]) == ("expert" in targets) and "q" in made["blocks"] and "router" not in made["blocks"]
    save_peft(tmp_path, model, made, config, str(directory))
    beside = dataclasses.replace(model, lora=config).logits(params, jnp.array(TOKENS), made)
    assert np.abs(beside - model.logits(params, jnp.array(TOKENS))).max() > 0.1
    np.testing.assert_allclose(model.logits(lora.merge(params, made, config), jnp.array(TOKENS)), beside, atol=1e-4)
    theirs = peft.PeftModel.from_pretrained(torch_base(directory), tmp_path).eval()
    np.testing.assert_allclose(torch_logits(theirs), beside, atol=1e-4)
    again, its = load_peft(tmp_path, model)
    assert (its.rank, its.alpha) == (3, 7.0)
    jax.tree.map(np.testing.assert_array_equal, again, made)


@pytest.mark.parametrize("which", [["gate_up_proj", "down_proj"], ["down_proj"]], ids=["both", "one"])
def test_adapters_of_all_experts_together_are_cut_into_each_experts_own(mixture, tmp_path, which):
    """PEFT's target_parameters, which is what it makes of a mixture in transformers 5."""
    directory, model, params = mixture
    torch.manual_seed(1)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, lora_alpha=6, target_modules=["v_proj"], target_parameters=[f"mlp.experts.{name}" for name in which],
        rank_pattern={r".*\.gate_up_proj": 4}, alpha_pattern={r".*\.gate_up_proj": 5},
    )  # fmt: skip
    theirs = peft.get_peft_model(torch_base(directory), config).eval()
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "lora_" in name:
                value.copy_(0.2 * torch.randn_like(value))
    theirs.save_pretrained(tmp_path)
    found, its = load_peft(tmp_path, model)
    assert ("expert_up" in found["blocks"]) == (len(which) == 2) and "expert_down" in found["blocks"] and "v" in found["blocks"]
    ours = model.logits(lora.merge(params, found, its), jnp.array(TOKENS))
    np.testing.assert_allclose(ours, torch_logits(theirs), atol=1e-4)


def test_what_a_mixtures_adapters_can_not_have_is_refused(mixture, tmp_path):
    _, model, _ = mixture
    with pytest.raises(
        ConfigError, match=r"lora.dropout 0.1: adapters of experts have none, as in PEFT; set it to 0, or leave blocks.expert_"
    ):
        adapters.init(jax.random.key(0), model, LoraConfig(rank=2, alpha=4.0, dropout=0.1, targets="blocks.expert_up"))
    with pytest.raises(ConfigError, match="blocks.router, and embeddings, norms and biases have no adapters"):
        adapters.init(jax.random.key(0), model, LoraConfig(rank=2, alpha=4.0, targets="blocks.router"))
    config = LoraConfig(rank=2, alpha=4.0, targets="blocks.q")
    dense = Model(shape(97))
    save_peft(tmp_path, dense, drawn(dense, config), config, "base")
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"target_parameters": ["q_proj.weight"]}))
    with pytest.raises(ConfigError, match="not supported: target_parameters"):
        load_peft(tmp_path, dense)
