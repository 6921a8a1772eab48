"""Adapters beside their matrices: the same numbers as merged ones, and what their dropout draws."""

import dataclasses
import re
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from flax.traverse_util import flatten_dict

from lpo_jax.batch import TreeBatch
from lpo_jax.config import LoraConfig, MeshConfig, ModelConfig
from lpo_jax.model import adapters as low_rank
from lpo_jax.model import hf, linear, lora
from lpo_jax.model.decoder import Model
from lpo_jax.model.families import FAMILIES
from lpo_jax.model.linear import Adapter, adapters_of, product
from lpo_jax.model.peft import load_peft
from lpo_jax.sharding import make_mesh
from lpo_jax.train.state import param_shardings
from lpo_jax.train.step import forward
from tests.helpers import families as tiny

LLAMA = ModelConfig("llama", vocab_size=31, d_model=24, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=6, d_mlp=40, max_positions=64)
CONFIG = LoraConfig(rank=3, alpha=7.0, dropout=0.25)
TOKENS = np.random.default_rng(0).integers(0, 31, (2, 19))
RANDOM = np.random.default_rng(1)


def draw(*shape):
    return jnp.asarray(RANDOM.standard_normal(shape))


def trained(model, config=CONFIG):
    shapes = jax.eval_shape(lambda: low_rank.init(jax.random.key(0), model, config))
    return jax.tree.map(lambda x: 0.2 * draw(*x.shape), shapes)


@pytest.mark.parametrize("remat", ["dots", *(pytest.param(x, marks=pytest.mark.slow) for x in ("none", "block"))])
@pytest.mark.parametrize("family", ["llama", *(pytest.param(x, marks=pytest.mark.slow) for x in ("gpt_bigcode", "codegen"))])
def test_beside_is_as_merged(family, remat):
    """Logits and the adapters' gradients, in float64."""
    more = {"llama": {}, "codegen": {"parallel": True, "gated_mlp": False}, "gpt_bigcode": {"tied_head": True, "positions": "learned", "qkv_bias": True}}[family]  # fmt: skip
    with jax.enable_x64(True):
        shape = dataclasses.replace(LLAMA, family=family, **more)
        model = Model(shape, "float64", "float64", remat, CONFIG)
        params, adapters, plain = model.init(jax.random.key(0)), trained(model), dataclasses.replace(model, lora=None)
        params = jax.tree.map(lambda x: x + 0.1 * draw(*x.shape), params)
        pull = draw(2, 19, 31)

        def beside(adapters):
            return (pull * model.logits(params, TOKENS, adapters)).sum()

        def merged(adapters):
            return (pull * low_rank.untied(plain, adapters).logits(lora.merge(params, adapters, CONFIG), TOKENS)).sum()

        found, expected = (jax.jit(jax.value_and_grad(f))(adapters) for f in (beside, merged))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9), found, expected)
        assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(found))


def test_rows_take_their_own_of_several_adapters():
    """In float64, through cache and head: of each row what its adapter alone gives; 0 is none."""
    with jax.enable_x64(True):
        plain = Model(LLAMA, "float64", "float64")
        params = jax.tree.map(lambda x: x + 0.1 * draw(*x.shape), plain.init(jax.random.key(0)))
        configs = [LoraConfig(3, 7.0, targets=r"blocks\.(q|o)|head"), LoraConfig(2, 5.0, targets=r"blocks\.(o|down)", rslora=True)]
        made = [(trained(plain, config), config) for config in configs]
        several, tokens, which = low_rank.joined(made, "float64"), np.vstack([TOKENS, TOKENS[:1]]), np.array([2, 0, 1])
        assert several["blocks"]["o"]["a"].shape == (3, 4, 6, 5) and several["head"]["b"].shape == (3, 31)
        names = low_rank.joined_axes(plain, several)
        assert jax.tree.map(jnp.ndim, several) == jax.tree.map(len, names, is_leaf=lambda x: isinstance(x, tuple))
        table, at = np.arange(15).reshape(3, 5), np.broadcast_to(np.arange(19), (3, 19))
        cache = plain.decode(params, plain.empty_cache(15, 4), tokens[:, :10], at[:, :10], table, several, which)[1]
        hidden, _ = plain.decode(params, cache, tokens[:, 10:], at[:, 10:], table, several, which)
        found = plain.unembed(params, hidden, several, which)
        for row, number in enumerate(which):
            merged = params if number == 0 else lora.merge(params, *made[number - 1])
            np.testing.assert_allclose(found[row], plain.logits(merged, tokens[row : row + 1])[0, 10:], rtol=1e-9, atol=1e-9)


def test_dropout_is_of_each_token_and_input_on_its_own():
    x, a = 1 + jnp.abs(draw(2, 50, 4, 6)), jnp.eye(24).reshape(4, 6, 24)
    drawn = product(x, jnp.zeros((4, 6, 24)), Adapter(a, jnp.eye(24), 2.0, 0.25, jax.random.key(0))).reshape(x.shape)
    dropped = np.asarray(drawn == 0)
    np.testing.assert_allclose(drawn, np.where(dropped, 0, 2 * x / 0.75), rtol=1e-6)
    assert abs(dropped.mean() - 0.25) < 0.02
    assert len(np.unique(dropped.reshape(100, 24), axis=0)) > 95, "tokens share a mask"
    assert len(np.unique(dropped.reshape(100, 24), axis=1).T) == 24, "inputs share a mask"


def test_modules_draw_their_own_masks_and_a_fused_one_draws_one():
    matrices = {name: {"a": jnp.eye(24), "b": jnp.eye(24)} for name in "qkvo"}
    made = adapters_of(matrices, CONFIG, {"q": "c_attn", "k": "c_attn", "v": "c_attn", "o": "c_proj"}, jax.random.key(0))
    q, k, v, o = (product(jnp.ones((1, 50, 24)), jnp.zeros((24, 24)), made[name]) == 0 for name in "qkvo")
    assert (q == k).all() and (q == v).all() and (q != o).any()


def test_layers_and_modules_of_a_model_draw_their_own_masks(monkeypatch):
    """And a fused tensor's matrices share them."""
    keys = []
    kept = linear.kept
    monkeypatch.setattr(linear, "kept", lambda key, *more: [jax.debug.callback(keys.append, jax.random.key_data(key)), kept(key, *more)][1])
    for family, calls, modules in (("llama", 7, 7), ("gpt_bigcode", 6, 4)):
        keys.clear()
        model = Model(dataclasses.replace(LLAMA, family=family, gated_mlp=family == "llama"), lora=CONFIG, remat="none")
        rows = jnp.broadcast_to(jnp.arange(19), TOKENS.shape), jnp.full(TOKENS.shape, 19)
        model.hidden(model.init(jax.random.key(0)), TOKENS, *rows, trained(model), jax.random.key(1))
        jax.effects_barrier()
        assert len(keys) == 3 * calls
        assert len({tuple(np.asarray(key).tolist()) for key in keys}) == 3 * modules


@pytest.mark.slow
def test_masks_are_the_same_when_a_layer_is_computed_again():
    model = Model(LLAMA, lora=CONFIG)
    params, adapters = model.init(jax.random.key(0)), trained(model)
    rows = jnp.broadcast_to(jnp.arange(19), TOKENS.shape), jnp.full(TOKENS.shape, 19)

    def gradient(remat):
        own = dataclasses.replace(model, remat=remat)
        return jax.grad(lambda x: jnp.square(own.hidden(params, TOKENS, *rows, x, jax.random.key(1))).sum())(adapters)

    expected = gradient("none")
    for remat in ("dots", "attention", "block"):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), gradient(remat), expected)


def test_bfloat16_products_keep_the_compute_dtype():
    x, w = draw(1, 5, 24).astype(jnp.bfloat16), draw(24, 8).astype(jnp.float32)
    y = product(x, w, Adapter(draw(24, 3).astype(jnp.float32), draw(3, 8).astype(jnp.float32), 2.0))
    assert y.dtype == jnp.bfloat16


def test_the_gradient_of_a_has_the_rank_in_front_on_cpus():
    """[in, R] by rows takes five times as long; by columns it is the same."""

    def loss(adapter, x, w):
        return jnp.square(product(x, w, Adapter(*adapter, 2.0))).sum()

    x, w, adapter = draw(2, 20, 24), draw(24, 8), (draw(24, 3), draw(3, 8))
    text = jax.jit(jax.grad(loss)).lower(adapter, x, w).compile().as_text()
    assert re.search(r"(\[3,24\]\{1,0\}|\[24,3\]\{0,1\}) dot\(", text) and not re.search(r"(\[24,3\]\{1,0\}|\[3,24\]\{0,1\}) dot\(", text)


# --- PEFT.


def plain_batch(tokens):
    """Plain sequences [B, T] as a batch; each token but the first is scored."""
    B, T = tokens.shape
    fields = dict.fromkeys(TreeBatch.__dataclass_fields__)
    row = {
        "tokens": tokens[0],
        "positions": np.arange(T),
        "subtree_end": np.full(T, T),
        "source": np.arange(T - 1),
        "pair": np.zeros(T - 1),
    }
    fields |= {name: jnp.broadcast_to(jnp.asarray(x, jnp.int32), (B, len(x))) for name, x in row.items()}
    return TreeBatch(**fields | {"tokens": jnp.asarray(tokens), "target": jnp.asarray(tokens[:, 1:])})


class Given(torch.nn.Module):
    """A dropout that keeps what it is told to."""

    def __init__(self, kept, dropout):
        super().__init__()
        self.factor = torch.tensor(np.asarray(kept) / (1 - dropout))

    def forward(self, x):
        return x * self.factor.to(x.dtype).reshape(x.shape)


SHOWN = ("llama untied", "gpt_bigcode", "qwen3_moe")
"""Families whose tensors are separate, fused with a tied head, and experts'; the others are like them."""


@pytest.mark.parametrize("family", [name if name in SHOWN else pytest.param(name, marks=pytest.mark.slow) for name in tiny.FAMILIES])
def test_losses_and_gradients_are_pefts_under_the_same_masks(family, tmp_path, monkeypatch):
    """Every matrix adapted, the head too, tied or not. In float64, also where transformers asks for float32: in norms, softmax, rotations."""
    rank, dropout, key = 3, 0.3, jax.random.key(5)
    for name in ("float32", "float"):
        monkeypatch.setattr(torch, name, torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(
        tiny.FAMILIES[family](), attn_implementation="eager", experts_implementation="eager"
    )
    base.save_pretrained(tmp_path / "base")
    tensors = [t for t in FAMILIES[base.config.model_type].tensors if t.is_matrix and not t.of_experts]  # PEFT has no dropout for experts
    modules = {t: t.name.removesuffix(".weight") for t in tensors}
    there = {name for name, _ in base.named_modules()}
    modules = {t: name for t, name in modules.items() if name.format(layer=0) in there}
    settings = peft.LoraConfig(
        r=rank, lora_alpha=7, lora_dropout=dropout, target_modules=[name.split("{layer}.")[-1] for name in modules.values()]
    )
    theirs = peft.get_peft_model(base, settings)
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "lora_" in name:
                value.copy_(0.2 * torch.randn_like(value))
    theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    theirs.double().eval()  # the masks below are not the mode's

    with jax.enable_x64(True):
        model = Model(hf.read_config(tmp_path / "base"), "float64", "float64")
        params = hf.read_params(tmp_path / "base", model, param_shardings(model, make_mesh(MeshConfig(1), jax.devices()[:1])))
        adapters, config = load_peft(tmp_path / "adapter", model)
        adapters = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), adapters)
        model = dataclasses.replace(model, lora=config)
        for tensor, name in modules.items():
            for layer in range(model.config.n_layers if tensor.stacked else 1):
                module = theirs.get_submodule("base_model.model." + name.format(layer=layer))
                own = jax.random.fold_in(key, layer) if tensor.stacked else key
                shape = *tiny.TOKENS.shape, module.in_features
                kept = linear.kept(jax.random.fold_in(own, crc32(tensor.name.encode())), shape, dropout)
                module.lora_dropout["default"] = Given(kept, dropout)
        B, T = tiny.TOKENS.shape
        weights = np.random.default_rng(1).random((B, T - 1))
        batch = plain_batch(tiny.TOKENS)
        loss, grads = jax.jit(jax.value_and_grad(lambda x: (weights * forward(model, x, params, batch, key)).sum()))(adapters)

    logps = torch.log_softmax(theirs(torch.tensor(tiny.TOKENS)).logits[:, :-1], -1)
    expected = (logps.gather(-1, torch.tensor(tiny.TOKENS[:, 1:, None]))[..., 0] * torch.tensor(weights)).sum()
    expected.backward()
    errors = {"loss": abs(float(loss) / expected.item() - 1)}
    grads = flatten_dict(grads, sep=".")
    for tensor, name in modules.items():
        L = model.config.n_layers if tensor.stacked else 1
        each = [theirs.get_submodule("base_model.model." + name.format(layer=layer)) for layer in range(L)]
        a = sum(np.asarray(grads[f"{path}.a"]).reshape(L, -1, rank) for path in tensor.paths)
        b = tensor.fuse([np.asarray(grads[f"{path}.b"]).reshape(L, rank, -1) for path in tensor.paths])
        for side, found in (("lora_A", a), ("lora_B", b)):
            wanted = np.stack([getattr(module, side)["default"].weight.grad.numpy().T for module in each])
            assert np.abs(wanted).max() > 0
            errors[f"{name}.{side}"] = np.abs(found - wanted).max() / np.abs(wanted).max()
    print(f"largest relative error {max(errors.values()):.1e}: {max(errors, key=errors.get)}")
    assert {name: error for name, error in errors.items() if not error < 1e-5} == {}
