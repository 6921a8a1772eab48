"""Adapters beside their matrices: the same numbers as merged ones, and what their dropout draws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax.config import LoraConfig, ModelConfig
from lpo_jax.model import adapters as low_rank
from lpo_jax.model import linear, lora
from lpo_jax.model.decoder import Model
from lpo_jax.model.linear import Adapter, adapters_of, product

SHAPE = ModelConfig("llama", vocab_size=31, d_model=24, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=6, d_mlp=40, max_positions=64)
CONFIG = LoraConfig(rank=3, alpha=7.0, dropout=0.25)
TOKENS = np.random.default_rng(0).integers(0, 31, (2, 19))
RANDOM = np.random.default_rng(1)


def draw(*shape):
    return jnp.asarray(RANDOM.standard_normal(shape))


def trained(model, config=CONFIG):
    shapes = jax.eval_shape(lambda: low_rank.init(jax.random.key(0), model, config))
    return jax.tree.map(lambda x: 0.2 * draw(*x.shape), shapes)


@pytest.mark.parametrize("remat", ["none", "dots", "block"])
@pytest.mark.parametrize("family", ["llama", "gpt_bigcode", "codegen"])
def test_beside_is_as_merged(family, remat):
    """Logits and the adapters' gradients, in float64."""
    more = {"llama": {}, "codegen": {"parallel": True, "gated_mlp": False}, "gpt_bigcode": {"tied_head": True, "positions": "learned", "qkv_bias": True}}[family]  # fmt: skip
    with jax.enable_x64(True):
        shape = dataclasses.replace(SHAPE, family=family, **more)
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
        plain = Model(SHAPE, "float64", "float64")
        params = jax.tree.map(lambda x: x + 0.1 * draw(*x.shape), plain.init(jax.random.key(0)))
        configs = [LoraConfig(3, 7.0, targets=r"blocks\.(q|o)|head"), LoraConfig(2, 5.0, targets=r"blocks\.(o|down)", rslora=True)]
        made = [(trained(plain, config), config) for config in configs]
        several, tokens, which = low_rank.joined(made, "float64"), np.vstack([TOKENS, TOKENS[:1]]), np.array([2, 0, 1])
        assert several["blocks"]["o"]["a"].shape == (3, 4, 6, 5) and several["head"]["b"].shape == (3, 31)
        names = low_rank.joined_axes(plain, several)
        assert jax.tree.map(jnp.ndim, several) == jax.tree.map(len, names, is_leaf=lambda x: isinstance(x, tuple))
        cache = jax.tree.map(
            lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 9), (0, 0), (0, 0))), plain.prefill(params, tokens[:, :10], several, which)
        )
        hidden, _ = plain.decode(params, cache, tokens[:, 10:], jnp.broadcast_to(jnp.arange(10, 19), (3, 9)), several, which)
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
        model = Model(dataclasses.replace(SHAPE, family=family, gated_mlp=family == "llama"), lora=CONFIG, remat="none")
        rows = jnp.broadcast_to(jnp.arange(19), TOKENS.shape), jnp.full(TOKENS.shape, 19)
        model.hidden(model.init(jax.random.key(0)), TOKENS, *rows, trained(model), jax.random.key(1))
        jax.effects_barrier()
        assert len(keys) == 3 * calls
        assert len({tuple(np.asarray(key).tolist()) for key in keys}) == 3 * modules


def test_masks_are_the_same_when_a_layer_is_computed_again():
    model = Model(SHAPE, lora=CONFIG)
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
