"""Decoding with int8 weights is decoding with what the codes stand for, which lies nowhere as a whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from qwix import QArray

from lpo_jax.config import MeshConfig
from lpo_jax.decode import CoDecoding, Sampler, SamplingConfig
from lpo_jax.decode.load import Models, find, load_model, open_sampler
from lpo_jax.model.decoder import Model
from lpo_jax.model.linear import Apart
from lpo_jax.model.quantized import dequantize
from lpo_jax.plan import chips
from lpo_jax.sharding import make_mesh
from lpo_jax.train.state import base_shardings
from tests.helpers.marks import needs_libtpu
from tests.helpers.sampling import PROMPTS, load, requests, run, save_model, tokenizer, write_adapter
from tests.helpers.training import MODEL

GREEDY = SamplingConfig(temperature=0, max_new_tokens=12)


def stood_for(opened):
    """The float model of a quantised one's values."""
    params = jax.tree.map(lambda w: dequantize(w, jnp.float32) if isinstance(w, QArray) else w, opened.params, is_leaf=lambda w: isinstance(w, QArray))  # fmt: skip
    return dataclasses.replace(opened, model=dataclasses.replace(opened.model, quantize=None), params=params)


@pytest.mark.parametrize("mesh", [MeshConfig(1, 1, 1), pytest.param(MeshConfig(1, 2, 2), marks=pytest.mark.slow)], ids=["one", "mesh"])
@pytest.mark.parametrize("merged", [False, True], ids=["plain", "merged"])
def test_it_writes_what_the_codes_stand_for(mesh, merged, tmp_path):
    """On one CPU, where each layer's codes lie apart, and on a mesh, which cuts them. An adapter is merged first: the codes are of the sum."""
    base = save_model(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", base, 1) if merged else None
    on = make_mesh(mesh, jax.devices()[: 4 if mesh.fsdp > 1 else 1])
    exact, codes = (load_model(str(base), on, "float32", adapter, kind) for kind in (None, "int8"))
    matrices = [name for name, w in codes.params["blocks"].items() if isinstance(w, QArray)]
    assert sorted(matrices) == ["down", "gate", "k", "o", "q", "up", "v"]
    for name in matrices:
        found, wanted = np.asarray(dequantize(codes.params["blocks"][name], jnp.float32)), np.asarray(exact.params["blocks"][name])
        np.testing.assert_allclose(found, wanted, atol=np.abs(wanted).max() / 250)
    floats = run(Sampler(stood_for(codes), tokenizer(), GREEDY, 4, 64), requests(PROMPTS[:5]))
    ready = codes.for_decoding()
    assert isinstance(ready.params["blocks"]["q"], Apart) == (mesh.fsdp == 1)
    found = run(Sampler(ready, tokenizer(), GREEDY, 4, 64), requests(PROMPTS[:5]))
    for key, completion in floats.items():
        assert completion.tokens == found[key].tokens
        np.testing.assert_allclose(found[key].logprobs, completion.logprobs, atol=1e-4)
    assert found != run(Sampler(exact, tokenizer(), GREEDY, 4, 64), requests(PROMPTS[:5]))  # its logits aren't those of the codes


def test_both_of_two_models(tmp_path):
    """A security model with the target's codes is never contradicted."""
    base = str(save_model(tmp_path / "base"))
    one = MeshConfig(1, 1, 1)
    models = Models(base, security=base, rule=CoDecoding(threshold=0.3), rows=8, quantize="int8")
    sampler = open_sampler(find(models), GREEDY, 64)
    assert all(jax.tree.leaves(params, is_leaf=lambda w: isinstance(w, QArray)) for params in sampler.params)
    found = run(sampler, requests(PROMPTS[:4]))
    alone = run(Sampler(load_model(base, load(base, one).mesh, "float32", None, "int8"), tokenizer(), GREEDY, 4, 64), requests(PROMPTS[:4]))
    assert all(all(completion.facts["accepted"]) for completion in found.values())
    assert {key: completion.tokens for key, completion in found.items()} == {key: completion.tokens for key, completion in alone.items()}


@pytest.mark.parametrize("where", ["cpu", pytest.param("v5e:2x2", marks=[pytest.mark.slow, needs_libtpu])])
def test_no_float_copy_of_the_layers(where):
    """Steps that decode need little more memory than one layer's largest matrix, of twelve layers."""
    shape = dataclasses.replace(MODEL, n_layers=12, d_model=512, d_mlp=2048, head_dim=128)
    dtype = "float32" if where == "cpu" else "bfloat16"
    model = Model(shape, dtype, dtype, quantize="int8")
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1] if where == "cpu" else chips.topology_devices(where)[:1])

    def steps(params, cache, tokens, table):
        def step(i, carry):
            cache, tokens = carry
            x, cache = model.decode(params, cache, tokens, jnp.full_like(tokens, i), table)
            return cache, model.unembed(params, x).argmax(-1).astype(jnp.int32)

        return jax.lax.fori_loop(0, 8, step, (cache, tokens))

    with jax.set_mesh(mesh):
        params = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), model.base_shapes(), base_shardings(model, mesh))  # fmt: skip
        if where == "cpu":
            inputs = model.inputs()
            blocks = params["blocks"]
            matrices = {name: inputs[f"blocks.{name}"] for name, w in blocks.items() if isinstance(w, QArray)}
            apart = {name: jax.eval_shape(lambda w, count=count: Apart.of(w, count), blocks[name]) for name, count in matrices.items()}
            params |= {"blocks": blocks | apart}
        given = jax.eval_shape(lambda: model.empty_cache(4, 128)), *(jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((4, 1), (4, 1)))
        program = jax.jit(steps, donate_argnums=1).lower(params, *given).compile()
    largest = max(w.size // shape.n_layers for w in jax.tree.leaves(model.shapes()["blocks"])) * jnp.dtype(dtype).itemsize
    assert program.memory_analysis().temp_size_in_bytes < 2 * largest
