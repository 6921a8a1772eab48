"""Quantised matrices: codes and scales are Qwix's, what they stand for is computed as it lies on the devices, and reading holds one tensor."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from lpo_jax.config import ConfigError, LoraConfig, MeshConfig, ModelSource
from lpo_jax.model import hf
from lpo_jax.model.decoder import Model
from lpo_jax.model.quantized import NF4, TRIED, dequantize, quantize
from lpo_jax.sharding import make_mesh
from lpo_jax.train.state import base_shardings, fingerprint, frozen_shapes, param_shardings
from tests.helpers.training import MIXTURE, MODEL

KINDS = ("int8", "int4", "nf4")
LORA = LoraConfig(4, 8.0)


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 0.02, shape).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dims", "inputs"), [((256, 4, 32), 1), ((4, 64, 256), 2), ((96, 80), 1), ((54, 8), 1)], ids=["q", "o", "down", "odd"]
)
def test_each_layers_matrix_is_a_qwix_array(kind, dims, inputs):
    """Of a matrix [inputs, outputs]; int8's codes are Qwix's too. Where several dims are inputs, blocks lie within the last: heads have no block in common."""
    w = gaussian(3, *dims)
    found = quantize(jnp.asarray(w), kind, 1, inputs)
    assert found.qvalue.shape == w.shape and found.qtype == kind and found.scale.dtype == ("float32" if kind == "int8" else "bfloat16")
    size = {54: 27}.get(dims[inputs - 1], 32)
    assert found.scale.size == 3 * np.prod(dims[inputs:]) * (1 if kind == "int8" else np.prod(dims[:inputs]) // size)
    for layer in range(3):
        rows = int(np.prod(dims[:inputs]))
        codes, scale = found.qvalue[layer].reshape(rows, -1), found.scale[layer].astype("float32").reshape(-1, int(np.prod(dims[inputs:])))
        if kind == "int8":
            own = qwix.quantize(jnp.asarray(w[layer].reshape(rows, -1)), "int8", channelwise_axes=[1])
            np.testing.assert_array_equal(codes, own.qvalue)
            np.testing.assert_array_equal(scale, own.scale)
        expected = qwix.dequantize(qwix.QArray(codes, scale, qtype=kind))
        np.testing.assert_array_equal(dequantize(found, "float32")[layer].reshape(rows, -1), expected)


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.008), ("int4", 0.083), ("nf4", 0.078)])
def test_the_error_of_gaussian_numbers(kind, error):
    """Root mean square, as a share of the numbers' own; nf4's values are a normal distribution's quantiles.

    With blocks of 64 and a scale by the largest number, as bitsandbytes has them, it is 9.2 % for nf4.
    """
    w = jnp.asarray(gaussian(512, 256))
    found = dequantize(quantize(w, kind, 0, 1), "float32")
    assert 0.9 * error < float(jnp.sqrt(jnp.mean((found - w) ** 2) / jnp.mean(w**2))) < error


@pytest.mark.parametrize(("inputs", "size"), [(1, 1.0), (65, 1e3), (127, 1e-3), (192, 1.0)])
def test_no_number_of_int8_is_further_off_than_half_a_step(inputs, size):
    w = gaussian(inputs, 3, seed=inputs) * np.float32(size)
    found = quantize(jnp.asarray(w), "int8", 0, 1)
    off = np.abs(np.asarray(dequantize(found, "float32")) - w)
    assert (off <= 0.5 * np.asarray(found.scale) * 1.0001).all()


@pytest.mark.parametrize(("kind", "values"), [("int4", np.arange(-8, 8)), ("nf4", np.array(NF4))])
@pytest.mark.parametrize(("inputs", "block", "size"), [(1, 1, 1.0), (65, 13, 1e3), (62, 31, 1e-3), (192, 32, 1.0)])
def test_a_block_has_the_best_scale_that_is_tried(kind, values, inputs, block, size):
    """Of numbers with outliers too. Every number has the nearest code; in sum they are nearer than with the scale that everyone takes."""
    w = np.random.default_rng(inputs).standard_t(4, (inputs, 40)) * size
    blocks = np.float32(w).reshape(-1, block, 40).astype(np.float64)
    largest = np.abs(blocks).max(1)

    def errors(scale):
        return (np.abs(blocks[..., None] - scale[:, None, :, None] * values).min(-1) ** 2).sum(1)

    tried = np.concatenate([TRIED, np.negative(TRIED)])[:, None, None] * largest / np.abs(values).max()
    best = np.min([errors(np.float64(scale.astype(jnp.bfloat16))) for scale in tried], axis=0)
    found = np.asarray(dequantize(quantize(jnp.asarray(w, "float32"), kind, 0, 1), "float32")).reshape(blocks.shape)
    own = ((found - blocks) ** 2).sum(1)
    np.testing.assert_allclose(own, best, rtol=1e-4, atol=1e-9 * size**2)
    assert own.sum() <= errors(largest / {"int4": 7.5, "nf4": 1}[kind]).sum() or block == 1


def test_zeros_and_codes_of_every_value():
    assert all(float(jnp.abs(dequantize(quantize(jnp.zeros((8, 4)), kind, 0, 1), "float32")).max()) == 0 for kind in KINDS)
    for kind, low, high in (("int8", -128, 127), ("int4", -8, 7)):
        codes = jnp.arange(low, high + 1).astype(kind)[:, None]
        found = dequantize(qwix.QArray(codes, jnp.full((1, 1), 0.5), qtype=kind), "float64")
        np.testing.assert_array_equal(found[:, 0], 0.5 * np.arange(low, high + 1))
    codes = jnp.arange(16).astype("uint4")[:, None]
    np.testing.assert_array_equal(dequantize(qwix.QArray(codes, jnp.ones((1, 1)), qtype="nf4"), "float32")[:, 0], np.float32(NF4))


def test_the_blocks_matrices_are_quantised_and_nothing_else():
    model = Model(MODEL, lora=LORA, quantize="nf4")
    frozen = frozen_shapes(model)
    kept = {name: x.dtype for name, x in frozen["blocks"].items() if not isinstance(x, qwix.QArray)}
    assert kept == dict.fromkeys(("attn_norm", "mlp_norm", "q_bias", "k_bias", "v_bias"), jnp.float32)
    assert {frozen[name].dtype for name in ("embed", "head", "final_norm")} == {jnp.dtype("float32")}
    assert {x.qvalue.dtype for x in frozen["blocks"].values() if isinstance(x, qwix.QArray)} == {jnp.dtype("uint4")}
    assert frozen_shapes(dataclasses.replace(model, lora=None)) == {}


def written(tmp_path, model):
    params = model.init(jax.random.key(0))
    hf.write_params(tmp_path, model, params)
    return params


@pytest.mark.slow
@pytest.mark.parametrize(("config", "kind"), [(MODEL, "nf4"), (MODEL, "int8"), (MODEL, "int4"), (MIXTURE, "nf4"), (MIXTURE, "int8")])
def test_what_is_read_is_quantised_layer_by_layer(config, kind, tmp_path):
    """The same on one device and on eight, and the same as a whole model quantised at once; and its fingerprint too."""
    model = Model(config, lora=LORA, quantize=kind)
    params = written(tmp_path, Model(config))
    expected = model.base(params)
    marks = set()
    for mesh in (make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), make_mesh(MeshConfig(1, 4, 2))):
        places = base_shardings(model, mesh)
        found = hf.read_params(tmp_path, model, places)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        jax.tree.map(lambda x, place: x.sharding.is_equivalent_to(place, x.ndim) or pytest.fail(str(x.sharding)), found, places)
        marks.add(int(fingerprint(found)))
    assert len(marks) == 1
    assert marks != {int(fingerprint(model.base(jax.tree.map(lambda x: -x, params))))}
    o, whole = places["blocks"]["o"], param_shardings(model, mesh)["blocks"]["o"]
    assert o.qvalue == whole and whole.spec == jax.sharding.PartitionSpec(None, "tensor", None, "fsdp")


def test_a_mixtures_experts_are_quantised_and_its_router_is_not():
    """Each expert has scales of its own: those of the expert's matrix alone."""
    base, shapes = Model(MIXTURE, lora=LORA, quantize="int8"), Model(MIXTURE).shapes()["blocks"]
    w = gaussian(*shapes["expert_down"].shape)
    params = {"blocks": {"router": gaussian(*shapes["router"].shape), "expert_down": jnp.asarray(w)}}
    found = base.base(params)["blocks"]
    assert found["router"] is params["blocks"]["router"]
    one = quantize(jnp.asarray(w[1, 3]), "int8", 0, 1)
    np.testing.assert_array_equal(found["expert_down"].qvalue[1, 3], one.qvalue)
    np.testing.assert_array_equal(found["expert_down"].scale[1, 3], one.scale)


def test_a_base_that_is_trained_is_not_quantised():
    with pytest.raises(ConfigError, match="model.quantize is for a frozen base: set model.lora, or take it out"):
        ModelSource(new=MODEL, quantize="int8")
    with pytest.raises(ConfigError, match="model.adapter can't be merged into a quantised model"):
        ModelSource(path="x", adapter="y", lora=LORA, quantize="int8")
