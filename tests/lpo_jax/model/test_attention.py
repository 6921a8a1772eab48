"""Every back end of the attention equals its definition, forward and backward, alone and on a mesh; kernels compile for their chips."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import NamedSharding, PartitionSpec

from lpo_jax.config import MeshConfig
from lpo_jax.model.attention import FAR, ancestors, attend, attend_dense, mask
from lpo_jax.sharding import make_mesh
from tests.helpers.paths import REPO

BACKENDS = ("cpu", "tpu", "gpu")  # kernels of other platforms are interpreted


def forest(rng, rows, length):
    """Ends and positions of rows full of random trees: trunk, two branches; the last tokens are padding."""
    ends = np.tile(np.arange(1, length + 1), (rows, 1))
    positions = np.zeros((rows, length), int)
    for row in range(rows):
        at = 0
        while at < length - 20:
            size = min(int(rng.integers(1, 150)), length - 20 - at)
            trunk = int(rng.integers(1, size + 1))
            chosen = int(rng.integers(0, size - trunk + 1))
            ends[row, at : at + size] = at + size
            ends[row, at + trunk : at + trunk + chosen] = at + trunk + chosen
            positions[row, at : at + size] = np.r_[np.arange(trunk + chosen), trunk + np.arange(size - trunk - chosen)]
            at += size
    return jnp.array(ends, jnp.int32), jnp.array(positions, jnp.int32)


def inputs(rows, length, K, G, H, dtype="float32"):
    keys = jax.random.split(jax.random.key(0), 4)
    q, pull = (jax.random.normal(x, (rows, length, K, G, H), dtype) for x in keys[:2])
    k, v = (jax.random.normal(x, (rows, length, K, H), dtype) for x in keys[2:])
    return q, k, v, pull


def both_ways(attention, q, k, v, pull):
    """Output and gradients."""
    out, back = jax.vjp(attention, q, k, v)
    return out, *back(pull)


@pytest.mark.parametrize("shape", [(300, 2, 3, 8), (190, 1, 2, 20)], ids=str)
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_back_end_is_the_dense_definition(backend, window, shape):
    ends, positions = forest(np.random.default_rng(0), 2, shape[0])
    args = inputs(2, *shape)
    found, expected = (
        jax.jit(both_ways, static_argnums=0)(f, *args)
        for f in (
            lambda *x: attend(*x, ancestors(ends, positions, window, backend)),
            lambda *x: attend_dense(*x, ends, positions, window),
        )
    )
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_of_layers_with_and_without_a_window_are_chosen_while_it_runs(backend):
    ends, positions = forest(np.random.default_rng(0), 2, 190)
    args, scale = inputs(2, 190, 1, 2, 16), 0.4

    @jax.jit
    def chosen(local, *args):
        seen = (ancestors(ends, positions, window, backend) for window in (FAR, 7))
        mask = jax.tree.map(lambda *x: jax.lax.select_n(local, *x), *seen)
        return both_ways(lambda *x: attend(*x, mask, scale), *args)

    for local, window in enumerate((None, 7)):
        expected = both_ways(lambda *x, w=window: attend_dense(*x, ends, positions, w, scale), *args)
        for f, e in zip(chosen(jnp.int32(local), *args), expected, strict=True):
            np.testing.assert_allclose(f, e, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_is_as_close_as_its_rounding(backend):
    ends, positions = forest(np.random.default_rng(1), 1, 200)
    exact = inputs(1, 200, 2, 2, 16)
    expected = both_ways(lambda *x: attend_dense(*x, ends, positions), *exact)
    rounded = (x.astype(jnp.bfloat16) for x in exact)
    found = both_ways(lambda *x: attend(*x, ancestors(ends, positions, None, backend)), *rounded)
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == jnp.bfloat16
        np.testing.assert_allclose(f.astype(jnp.float32), e, atol=0.06 * np.abs(e).max())


@pytest.mark.parametrize(("K", "G"), [(4, 1), (1, 4), (3, 1)], ids=["kv heads cut", "kv heads shared", "nothing to cut"])
def test_a_mesh_changes_nothing(K, G):
    ends, positions = forest(np.random.default_rng(2), 4, 150)
    args = inputs(4, 150, K, G, 8)
    expected = both_ways(lambda *x: attend_dense(*x, ends, positions), *args)
    mesh = make_mesh(MeshConfig(2, 2, 2))
    with jax.set_mesh(mesh):
        cut = [jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp")))) for x in (*args, ends, positions)]
        found = jax.jit(lambda *x: both_ways(lambda *y: attend(*y, ancestors(*x[4:])), *x[:4]))(*cut)
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, atol=1e-5)


def test_blocks_that_nobody_needs_are_left_out():
    """Five trees of two blocks each: each block meets itself and the tree's first block, never another tree."""
    size = mask.BLOCK["cpu"]
    ends = np.repeat(np.arange(1, 6) * 2 * size, 2 * size)[None]
    seen = ancestors(jnp.array(ends), jnp.zeros_like(ends))
    np.testing.assert_array_equal(seen.key_counts[0], [1, 2] * 5)
    np.testing.assert_array_equal(seen.query_counts[0], [2, 1] * 5)
    np.testing.assert_array_equal(seen.key_blocks[0, 3, :3], [2, 3, 3])  # the list repeats its last entry
    np.testing.assert_array_equal(seen.query_blocks[0, 2, :3], [2, 3, 3])


@pytest.mark.parametrize("window", [None, 9])
def test_every_needed_block_is_listed(window):
    ends, positions = forest(np.random.default_rng(3), 3, 900)
    seen = ancestors(ends, positions, window)
    C, (rows, T) = seen.block, seen.subtree_end.shape
    at = np.arange(T)
    who = (at <= at[:, None]) & (at[:, None] < np.asarray(seen.subtree_end)[:, None, :])
    if window is not None:
        who &= np.asarray(seen.positions)[:, :, None] - np.asarray(seen.positions)[:, None, :] < window
    needed = who.reshape(rows, T // C, C, T // C, C).any((2, 4))
    for b, i in np.ndindex(rows, T // C):
        assert set(np.flatnonzero(needed[b, i])) <= set(np.asarray(seen.key_blocks[b, i, : seen.key_counts[b, i]]))
        assert set(np.flatnonzero(needed[b, :, i])) <= set(np.asarray(seen.query_blocks[b, i, : seen.query_counts[b, i]]))
    if window is None:
        assert needed.sum() == seen.key_counts.sum() == seen.query_counts.sum()


def test_the_gpu_kernels_lower_to_triton(monkeypatch):
    """No GPU is needed to lower for one; compiling and running is left to machines that have it."""
    for module in ("mask", "gpu"):
        monkeypatch.setattr(f"lpo_jax.model.attention.{module}.platform", lambda: "gpu")
    shapes = [jax.ShapeDtypeStruct(s, "bfloat16") for s in ((1, 256, 2, 2, 80), *((1, 256, 2, 80),) * 2, (1, 256, 2, 2, 80))]
    masks = [jax.ShapeDtypeStruct((1, 256), "int32")] * 2
    step = jax.jit(lambda *x: both_ways(lambda *y: attend(*y, ancestors(*x[4:], 50)), *x[:4]))
    unchecked = [export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]
    program = export.export(step, platforms=["cuda"], disabled_checks=unchecked)(*shapes, *masks).mlir_module()
    assert program.count("stablehlo.custom_call @__gpu$xla.gpu.triton") == 3


COMPILE = """
import jax
from jax.experimental import topologies
from lpo_jax.config import MeshConfig
from lpo_jax.model.attention import FAR, ancestors, attend
from lpo_jax.sharding import make_mesh
from jax.sharding import NamedSharding, PartitionSpec
import sys
for name in sys.argv[1:]:
    mesh = make_mesh(MeshConfig(2, 1, 2), topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    with jax.set_mesh(mesh):
        for K, G, H, T, window in ((8, 4, 128, 4096, None), (1, 6, 128, 2048, None), (2, 1, 80, 1024, 100), (2, 2, 64, 300, None)):
            of = lambda *s, dtype="bfloat16": jax.ShapeDtypeStruct((2, T, *s), dtype, sharding=rows)
            def step(q, k, v, ends, positions):
                mask = ancestors(ends, positions, window)
                return jax.grad(lambda *x: attend(*x, mask).astype("float32").sum(), argnums=(0, 1, 2))(q, k, v)
            text = jax.jit(step).lower(of(K, G, H), of(K, H), of(K, H), of(dtype="int32"), of(dtype="int32")).compile().as_text()
            assert text.count("tpu_custom_call") >= 3, "the kernels aren't in the program"
            print(name, K, G, H, T, window)
"""


@pytest.mark.slow
def test_the_tpu_kernels_compile_for_every_generation():
    pytest.importorskip("libtpu")
    env = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    chips = ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"]
    done = subprocess.run([sys.executable, "-c", COMPILE, *chips], cwd=REPO, env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4 * len(chips)
