"""Every family against torch + transformers on tiny random models: logits, gradients, cached decoding, and the way back."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from lpo_jax.config import ConfigError, MeshConfig
from lpo_jax.model import hf
from lpo_jax.model.attention import NO_PAGE
from lpo_jax.model.decoder import Model
from lpo_jax.model.translate import config_from_hf
from lpo_jax.sharding import make_mesh
from lpo_jax.train.state import param_shardings
from tests.helpers.families import FAMILIES, SHAPE, TOKENS, as_in_files

ONE_EACH = ("llama untied", "mistral window", "qwen2 tied", "qwen3_moe", "gpt_bigcode", "codegen", "phi3 longrope", "gemma3")
"""Families that have every switch of the decoder between them."""


@pytest.fixture(params=[name if name in ONE_EACH else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES])
def torch_model(request):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[request.param](), attn_implementation="eager").eval()
    with torch.no_grad():  # biases and norms are born 0 and 1: make them count
        for name, value in model.named_parameters():
            if name.endswith("bias") or "norm" in name or "ln_" in name:
                value += 0.3 * torch.randn_like(value)
    return model


def load(directory, mesh_config=MeshConfig(data=8)):  # noqa: B008
    model = Model(hf.read_config(directory))
    return model, hf.read_params(directory, model, param_shardings(model, make_mesh(mesh_config)))


def test_logits_gradients_and_round_trip(torch_model, tmp_path):
    torch_model.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")  # several files and an index
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    model, params = load(tmp_path / "theirs")

    tokens = torch.tensor(TOKENS)
    theirs = torch_model(tokens).logits
    ours = model.logits(params, jnp.array(TOKENS))
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-4)

    mask = np.random.default_rng(1).random((2, 28)) < 0.4

    def masked_loss(params):
        logps = jax.nn.log_softmax(model.logits(params, jnp.array(TOKENS))[:, :-1])
        return -(jnp.take_along_axis(logps, TOKENS[:, 1:, None], axis=-1)[..., 0] * mask).sum()

    torch_logps = torch.log_softmax(theirs[:, :-1], -1).gather(-1, tokens[:, 1:, None])[..., 0]
    (-(torch_logps * torch.tensor(mask)).sum()).backward()
    grads = {name: tensor for name, tensor in hf._tensors(model, jax.grad(masked_loss)(params))}
    expected = as_in_files({name: p.grad.numpy() for name, p in torch_model.named_parameters()})
    assert grads.keys() == expected.keys()
    for name, gradient in grads.items():
        np.testing.assert_allclose(gradient, expected[name], atol=1e-4 * max(1, np.abs(expected[name]).max()), err_msg=name)

    hf.write_params(tmp_path / "ours", model, params)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    assert type(again) is type(torch_model)
    # exact but for gelu_new, written as its faster twin
    np.testing.assert_allclose(again(tokens).logits.detach().numpy(), theirs.detach().numpy(), atol=1e-5)


def test_cached_decoding_is_the_full_forward(torch_model, tmp_path):
    """Prefill of rows of different lengths, then token by token, then a block of three; longer than any window."""
    torch_model.save_pretrained(tmp_path)
    model, params = load(tmp_path, MeshConfig(data=1, fsdp=8))
    full = model.logits(params, jnp.array(TOKENS))

    table = np.array([[6, 1, 4, 0], [2, 7, 5, NO_PAGE]], np.int32)

    @jax.jit
    def decode(params, cache, tokens, positions):
        hidden, cache = model.decode(params, cache, tokens, positions, table)
        return model.unembed(params, hidden), cache

    lengths = np.array([11, 5])
    cache = model.empty_cache(8, 8)
    prompt = np.where(np.arange(11) < lengths[:, None], TOKENS[:, :11], 1)  # padded on the right
    logits, cache = decode(params, cache, prompt, np.broadcast_to(np.arange(11), (2, 11)))
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :n], full[row, :n], atol=1e-4)
    for size in (1, 1, 1, 3, 3, 1):
        positions = lengths[:, None] + np.arange(size)
        if lengths[0] == 13:
            stacked = params["blocks"]["o"]
            params = model.apart(params)
            assert stacked.is_deleted()  # so that the weights are never there twice
        logits, cache = decode(params, cache, np.take_along_axis(TOKENS, positions, axis=1), positions)
        np.testing.assert_allclose(logits, np.take_along_axis(np.asarray(full), positions[..., None], axis=1), atol=1e-4)
        lengths = lengths + size


def test_import_lands_in_its_sharding(torch_model, tmp_path):
    torch_model.save_pretrained(tmp_path)
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    model, params = load(tmp_path, mesh)

    def check(x, s):
        assert x.sharding.is_equivalent_to(s, x.ndim), f"{x.sharding} != {s}"

    jax.tree.map(check, params, param_shardings(model, make_mesh(mesh)))
    assert params["blocks"]["q"].sharding.spec[1:3] == ("fsdp", "tensor")
    alone = load(tmp_path)[1]
    jax.tree.map(np.testing.assert_array_equal, params, alone)


def test_big_exports_are_cut_into_files(torch_model, tmp_path, monkeypatch):
    torch_model.save_pretrained(tmp_path / "theirs")
    model, params = load(tmp_path / "theirs")
    monkeypatch.setattr(hf, "MAX_FILE_BYTES", 50_000)
    hf.write_params(tmp_path / "ours", model, params)
    assert len(list((tmp_path / "ours").glob("model-*-of-*.safetensors"))) > 2
    jax.tree.map(np.testing.assert_array_equal, params, load(tmp_path / "ours")[1])


def test_bfloat16_weights(torch_model, tmp_path):
    torch_model.to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    model = Model(hf.read_config(tmp_path / "theirs"), param_dtype="bfloat16")
    params = hf.read_params(tmp_path / "theirs", model, param_shardings(model, make_mesh(MeshConfig())))
    assert params["embed"].dtype == ml_dtypes.bfloat16
    hf.write_params(tmp_path / "ours", model, params)
    theirs, ours = (load_file(tmp_path / d / "model.safetensors") for d in ("theirs", "ours"))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported; supported: codegen, gemma3_text, gpt_bigcode, granite, llama"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope type 'dynamic' is not supported"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window=True is not supported for qwen2, only False"),
        ({"model_type": "gpt_bigcode", "multi_query": False}, "multi_query=False is not supported"),
        ({"hidden_size": None}, "missing hidden_size"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
    ],
)
def test_what_we_do_not_compute_is_refused_by_name(change, message):
    raw = transformers.LlamaConfig(**SHAPE).to_dict()
    with pytest.raises(ConfigError, match=message):
        config_from_hf(raw | change)


def test_old_and_new_rope_keys():
    raw = transformers.LlamaConfig(**SHAPE).to_dict()
    raw.pop("rope_parameters")
    assert config_from_hf(raw | {"rope_theta": 7e4}).rope_theta == 7e4
    assert config_from_hf(raw | {"rope_parameters": {"rope_type": "default", "rope_theta": 8e4}}).rope_theta == 8e4


def test_tensors_that_do_not_fit_are_all_named(tmp_path):
    transformers.AutoModelForCausalLM.from_config(FAMILIES["llama untied"]()).save_pretrained(tmp_path)
    file: Path = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = np.ones(5, np.float32)
    tensors["surprise"] = np.ones(1, np.float32)
    save_file(tensors, file)
    with pytest.raises(ConfigError) as error:
        load(tmp_path)
    for part in ("missing: model.layers.1.mlp.up_proj.weight", "unexpected: surprise", "shape of model.norm.weight: (5,), expected (48,)"):
        assert part in str(error.value)


def test_missing_files_and_pickles_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json doesn't exist"):
        hf.read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(transformers.LlamaConfig(**SHAPE).to_dict()))
    with pytest.raises(ConfigError, match="download"):
        load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match="pickled"):
        load(tmp_path)
