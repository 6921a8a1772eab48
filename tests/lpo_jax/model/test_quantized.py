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
from lpo_jax.model.quantized import NF4, dequantize, quantize
from lpo_jax.sharding import make_mesh
from lpo_jax.train.state import base_shardings, fingerprint, frozen_shapes, param_shardings
from tests.helpers.training import MODEL

KINDS = ("int8", "int4", "nf4")
LORA = LoraConfig(4, 8.0)


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 0.02, shape).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dims", "inputs"), [((256, 4, 32), 1), ((4, 64, 256), 2), ((96, 80), 1)], ids=["q", "o", "odd"])
def test_each_layers_matrix_is_qwixs_own(kind, dims, inputs):
    """Of a matrix [inputs, outputs]. Where several dims are inputs, blocks lie within the last: heads have no block in common."""
    w = gaussian(3, *dims)
    found = quantize(jnp.asarray(w), kind, 1, inputs)
    assert found.qvalue.shape == w.shape and found.qtype == kind and found.scale.dtype == jnp.float32
    size = {32: 32, 64: 64, 96: 48, 256: 64}[dims[inputs - 1]]
    assert found.scale.size == 3 * np.prod(dims[inputs:]) * (1 if kind == "int8" else np.prod(dims[:inputs]) // size)
    for layer in range(3):
        matrix = w[layer].reshape(int(np.prod(dims[:inputs])), -1)
        how = {"channelwise_axes": [1]} | ({} if kind == "int8" else {"tiled_axes": {0: size}})
        own = qwix.quantize(jnp.asarray(matrix), jnp.int8 if kind == "int8" else kind, **how)
        np.testing.assert_array_equal(found.qvalue[layer].reshape(matrix.shape), own.qvalue)
        expected = qwix.dequantize(own)
        np.testing.assert_array_equal(dequantize(found, "float32")[layer].reshape(matrix.shape), expected)


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.012), ("int4", 0.12), ("nf4", 0.10)])
def test_the_error_of_gaussian_numbers(kind, error):
    """Root mean square, as a share of the numbers' own; nf4's values are a normal distribution's quantiles."""
    w = jnp.asarray(gaussian(512, 256))
    found = dequantize(quantize(w, kind, 0, 1), "float32")
    assert 0.5 * error < float(jnp.sqrt(jnp.mean((found - w) ** 2) / jnp.mean(w**2))) < error


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("inputs", "size"), [(1, 1.0), (65, 1e3), (127, 1e-3), (192, 1.0)])
def test_no_number_is_further_off_than_its_place_in_the_code(kind, inputs, size):
    """Half a step of its own scale; a scale is the block's largest number by the code's largest."""
    w = gaussian(inputs, 3, seed=inputs) * np.float32(size)
    found = jax.tree.map(np.asarray, quantize(jnp.asarray(w), kind, 0, 1))
    scale = np.repeat(found.scale, inputs // found.scale.shape[0], axis=0)
    step = {"int8": 1.0, "int4": 1.0, "nf4": np.diff(NF4).max()}[kind]
    off = np.abs(np.asarray(dequantize(found, "float32")) - w)
    assert (off <= 0.5 * step * scale * 1.0001).all()
    if kind == "nf4":
        blocks = np.abs(w).reshape(found.scale.shape[0], -1, 3).max(1)
        np.testing.assert_allclose(found.scale, blocks, rtol=1e-6)


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
@pytest.mark.parametrize("kind", ["nf4", "int8", "int4"])
def test_what_is_read_is_quantised_layer_by_layer(kind, tmp_path):
    """The same on one device and on eight, and the same as a whole model quantised at once; and its fingerprint too."""
    model = Model(MODEL, lora=LORA, quantize=kind)
    params = written(tmp_path, Model(MODEL))
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


def test_a_base_that_is_trained_is_not_quantised():
    with pytest.raises(ConfigError, match="model.quantize is for a frozen base: set model.lora, or take it out"):
        ModelSource(new=MODEL, quantize="int8")
    with pytest.raises(ConfigError, match="model.adapter can't be merged into a quantised model"):
        ModelSource(path="x", adapter="y", lora=LORA, quantize="int8")
