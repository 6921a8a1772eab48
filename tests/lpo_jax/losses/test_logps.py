"""Log-probabilities in chunks equal the whole log-softmax: values and gradients, with and without bias, alone and on a mesh."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lpo_jax.batch import TreeBatch
from lpo_jax.config import MeshConfig
from lpo_jax.losses import logps
from lpo_jax.model.linear import LowRank
from lpo_jax.sharding import make_mesh

B, T, N, D, V = 8, 24, 20, 16, 44  # 44 columns: not divisible by 8 devices


def scored(rng, rows=B):
    """A batch with nothing but scored tokens: some rows empty, some full, sources shared by several."""
    lengths = rng.integers(0, N + 1, rows)
    lengths[:2] = 0, N
    pair = np.where(np.arange(N) < lengths[:, None], 0, -1)
    fields = dict.fromkeys(TreeBatch.__dataclass_fields__)
    fields |= {"source": rng.integers(0, T, (rows, N)), "target": rng.integers(0, V, (rows, N)), "pair": pair}
    return TreeBatch(**{name: None if x is None else jnp.array(x, jnp.int32) for name, x in fields.items()})


def arrays(dtype, bias, rows=B):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, head = jax.random.normal(keys[0], (rows, T, D), dtype), 3 * jax.random.normal(keys[1], (D, V), dtype)
    return hidden, head, jax.random.normal(keys[2], (V,), dtype) if bias else None, jax.random.normal(keys[3], (rows, N), dtype)


def whole(hidden, head, batch, bias):
    logits = hidden @ head + (0 if bias is None else bias)
    states = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.source[..., None], axis=1)
    return jnp.where(batch.pair >= 0, jnp.take_along_axis(states, batch.target[..., None], axis=2)[..., 0], 0)


def both_ways(f, batch, hidden, head, bias, pull):
    out, back = jax.vjp(lambda *x: f(x[0], x[1], batch, x[2]), hidden, head, bias)
    return out, *back(pull)


def promised(linear):
    """`token_logps` with its promise of `linear` weights, and a pull that keeps it."""
    return lambda hidden, head, batch, bias: logps.token_logps(hidden, head, batch, bias, linear)


def linear_part(batch, pull, which):
    """Of each row's scored tokens some, all or none, whose cotangent will be 0.3 times this."""
    some = {"some": jnp.arange(N) % 3 > 0, "all": jnp.ones(N, bool), "none": jnp.zeros(N, bool)}[which]
    return jnp.where((batch.pair >= 0) & some, pull / 0.3, 0)


@pytest.mark.parametrize("which", ["some", "all", "none", None])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [7, 1024])
def test_chunks_are_exact(chunk, bias, which, monkeypatch):
    monkeypatch.setattr(logps, "CHUNK", chunk)
    with jax.enable_x64(True):
        batch, args = scored(np.random.default_rng(0)), arrays("float64", bias)
        linear = None if which is None else linear_part(batch, args[-1], which)
        found, expected = (jax.jit(both_ways, static_argnums=0)(f, batch, *args) for f in (promised(linear), whole))
        for f, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(f, e, atol=1e-12)


@pytest.mark.parametrize("which", ["some", None])
@pytest.mark.parametrize("rows", [8, 3], ids=["rows cut", "rows not divisible"])
@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2)], ids=str)
def test_a_mesh_changes_nothing(mesh, rows, which, monkeypatch):
    monkeypatch.setattr(logps, "CHUNK", 5)
    batch, (hidden, head, bias, pull) = scored(np.random.default_rng(1), rows), arrays("float32", True, rows)
    expected = both_ways(whole, batch, hidden, head, bias, pull)
    mesh = make_mesh(MeshConfig(*mesh))
    with jax.set_mesh(mesh):
        head = jax.device_put(head, NamedSharding(mesh, PartitionSpec("fsdp", "tensor")))
        linear = None if which is None else linear_part(batch, pull, which)
        found = jax.jit(both_ways, static_argnums=0)(promised(linear), batch, hidden, head, bias, pull)
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-5, atol=2e-5)


def test_huge_logits_are_no_nan():
    """Beyond the last real token a chunk holds junk, whose weight is 0: 0 times infinity must not come of it."""
    batch, (hidden, head, _, pull) = scored(np.random.default_rng(2)), arrays("float32", False)
    for linear in (None, linear_part(batch, pull, "some")):
        for x in both_ways(promised(linear), batch, 100 * hidden, 100 * head, None, pull)[:3]:
            assert np.isfinite(x).all()


def products(jaxpr):
    """The dims of the matrices that products make."""
    return [{int(a), int(b)} for a, b in re.findall(r"f32\[(\d+),(\d+)\] = dot_general", str(jaxpr))]


def test_a_frozen_heads_chunks_are_small_on_cpus(monkeypatch):
    monkeypatch.setattr(logps, "CHUNK", 16)
    monkeypatch.setattr(logps, "FROZEN_CHUNK", 8)
    batch, (hidden, head, _, pull) = scored(np.random.default_rng(4)), arrays("float32", False)
    loss = lambda hidden, head: (pull * logps.token_logps(hidden, head, batch)).sum()  # noqa: E731
    for trained, size, other in (((0,), 8, 16), ((0, 1), 16, 8)):
        found = products(jax.make_jaxpr(jax.grad(loss, trained))(hidden, head))
        assert {size, V} in found and {other, V} not in found


@pytest.mark.parametrize("which", ["some", None])
@pytest.mark.parametrize("mesh", [(1, 1, 1), (1, 4, 2), (2, 2, 2)], ids=str)
def test_an_adapter_of_a_frozen_head(mesh, which, monkeypatch):
    """The adapter's gradients and the states', and none of the head and its bias."""
    monkeypatch.setattr(logps, "CHUNK", 5)
    batch, (hidden, head, bias, pull) = scored(np.random.default_rng(3)), arrays("float32", True)
    states, matrix = jax.random.normal(jax.random.key(1), (B, T, 3)), jax.random.normal(jax.random.key(2), (3, V))

    def adapted(hidden, states, matrix):
        linear = None if which is None else linear_part(batch, pull, which)
        return logps.token_logps(hidden, head, batch, bias, linear, LowRank(states, matrix))

    def plain(hidden, states, matrix):
        logits = jax.nn.log_softmax(hidden @ head + bias + states @ matrix)
        own = jnp.take_along_axis(logits, batch.source[..., None], axis=1)
        return jnp.where(batch.pair >= 0, jnp.take_along_axis(own, batch.target[..., None], axis=2)[..., 0], 0)

    def both(f, *x):
        out, back = jax.vjp(f, *x)
        return out, *back(pull)

    expected = both(plain, hidden, states, matrix)
    devices = jax.devices()[: int(np.prod(mesh))]
    with jax.set_mesh(make_mesh(MeshConfig(*mesh), devices)):
        traced = jax.jit(both, static_argnums=0).trace(adapted, hidden, states, matrix)
        found = traced.lower().compile()(hidden, states, matrix)
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-5, atol=2e-5)
    shape = {D, -(-V // int(np.prod(mesh[1:])))}
    assert shape not in products(traced.jaxpr), "the head has a gradient"
    with jax.set_mesh(make_mesh(MeshConfig(*mesh), devices)):
        whole = jax.jit(both_ways, static_argnums=0).trace(promised(None), batch, hidden, head, bias, pull)
    assert shape in products(whole.jaxpr), "it is seen where there is one"
