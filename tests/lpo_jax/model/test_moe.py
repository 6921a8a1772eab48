"""The mixture of experts against every expert computed for every token: values, gradients, any routing, any mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpo_jax.config import ConfigError, MeshConfig, ModelConfig
from lpo_jax.model.linear import Adapter
from lpo_jax.model.moe import MATRICES, mixture
from lpo_jax.plan import flops
from lpo_jax.sharding import make_mesh

E, K, D, F, R, B, T = 8, 3, 16, 12, 2, 8, 5
CONFIG = ModelConfig(
    "qwen3_moe", 50, D, 1, 2, 2, 8, 3, max_positions=64, experts=E, experts_per_token=K, d_expert=F, normalized_experts=True
)
SCALE = 0.7
FLOPS = 2 * B * T * K * D * F  # of one of the three products


def given_arrays(seed=0):
    draw = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.array(draw.standard_normal(shape), jnp.float32)

    matrices = dict(zip(MATRICES, (normal(E, D, F), normal(E, D, F), normal(E, F, D)), strict=True))
    adapters = {"expert_gate": (normal(E, D, R), normal(E, R, F)), "expert_down": (normal(E, F, R), normal(E, R, D))}
    return (normal(B, T, D), normal(E, D), matrices, adapters), normal(B, T, D), jnp.array(draw.random((B, T)) < 0.8)


def ours(h, router, matrices, adapters, counted, c=CONFIG):
    return mixture(h, counted, router, matrices, {name: Adapter(*ab, SCALE) for name, ab in adapters.items()}, c, jax.nn.silu)


def every_expert(h, router, matrices, adapters, counted, c=CONFIG):
    """All experts for all tokens, with weight 0 where they weren't chosen; adapters merged."""
    x = h.reshape(-1, D)
    probabilities = jax.nn.softmax(x @ router.T)
    weights, chosen = jax.lax.top_k(probabilities, c.experts_per_token)
    weights = weights / weights.sum(-1, keepdims=True) if c.normalized_experts else weights
    merged = {name: w + SCALE * adapters[name][0] @ adapters[name][1] if name in adapters else w for name, w in matrices.items()}
    gate, up, down = (merged[name] for name in MATRICES)
    inner = jax.nn.silu(jnp.einsum("td,edf->tef", x, gate)) * jnp.einsum("td,edf->tef", x, up)
    weight = jnp.zeros((len(x), E)).at[jnp.arange(len(x))[:, None], chosen].set(weights)
    y = jnp.einsum("te,tef,efd->td", weight, inner, down)
    return y.reshape(h.shape), ((weight > 0) & counted.reshape(-1, 1)).sum(0)


def with_gradients(function, args, cotangent, counted, **more):
    def loss(*args):
        y, load = function(*args, counted, **more)
        return (y * cotangent).sum(), (y, load)

    (_, found), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))(*args)
    return *found, grads


_jitted, _expected = jax.jit(ours), jax.jit(every_expert)


def assert_same(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 * max(1, float(np.abs(b).max())))


@pytest.mark.parametrize("normalized", [True, False])
def test_it_is_every_expert_weighted(normalized):
    args, cotangent, counted = given_arrays()
    c = dataclasses.replace(CONFIG, normalized_experts=normalized)
    expected = with_gradients(every_expert, args, cotangent, counted, c=c)
    assert expected[1].sum() == K * counted.sum()
    assert_same(with_gradients(ours, args, cotangent, counted, c=c), expected)


MESHES = [MeshConfig(1, 1, 1, 8), MeshConfig(1, 2, 2, 2), MeshConfig(1, 4, 2, 1), MeshConfig(2, 1, 1, 4), MeshConfig(1, 1, 4, 2)]


@pytest.mark.parametrize("mesh", [*MESHES[:2], *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in MESHES[2:])])
def test_eight_devices_compute_what_one_does(mesh):
    args, cotangent, counted = given_arrays()
    expected = with_gradients(every_expert, args, cotangent, counted)
    with jax.set_mesh(make_mesh(mesh)):
        assert_same(with_gradients(ours, args, cotangent, counted), expected)
        # Rows that don't divide, as in decoding, are everywhere: only the experts are cut.
        assert_same(_jitted(args[0][:1], *args[1:], counted[:1])[0], expected[0][:1])


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_no_token_is_dropped_whatever_the_routing(data):
    """A router of one-hot rows sends each token where the test says, also all tokens to the same experts; no expert has a limit."""
    order = st.permutations(range(E)).map(lambda found: found[:K])
    same = data.draw(st.booleans())
    ways = [data.draw(order)] * (B * T) if same else data.draw(st.lists(order, min_size=B * T, max_size=B * T))
    (h, _, matrices, _), _, _ = given_arrays()
    h = np.array(h)
    h[:, :, :E] = 0
    for t, experts in enumerate(ways):
        h[t // T, t % T, list(experts)] = 9, 8, 7
    router = jnp.eye(E, D)
    counted = jnp.ones((B, T), bool)
    expected, load = _expected(h, router, matrices, {}, counted)
    chosen = np.bincount(np.concatenate(ways), minlength=E)
    np.testing.assert_array_equal(load, chosen)
    assert not same or chosen.max() == B * T
    for mesh in (MeshConfig(8, 1, 1, 1), MeshConfig(1, 1, 1, 8)):
        with jax.set_mesh(make_mesh(mesh)):
            y, found = _jitted(h, router, matrices, {}, counted)
        np.testing.assert_array_equal(found, chosen)
        assert_same(y, expected)


def test_rows_without_an_expert_here_may_hold_anything(monkeypatch):
    """On TPUs no product writes behind the last run of rows, nor does its gradient: here both leave NaN there."""
    real = jax.lax.ragged_dot

    def poisoned(x, sizes):
        return jnp.where(jnp.arange(len(x))[:, None] < sizes.sum(), x, jnp.nan)

    @jax.custom_vjp
    def ragged_dot(x, w, sizes):
        return poisoned(real(x, w, sizes), sizes)

    def backward(saved, g):
        x, w, sizes = saved
        dx, dw = jax.vjp(lambda x, w: real(x, w, sizes), x, w)[1](g)
        return poisoned(dx, sizes), dw, None

    ragged_dot.defvjp(lambda *args: (ragged_dot(*args), args), backward)
    args, cotangent, counted = given_arrays()
    expected = with_gradients(every_expert, args, cotangent, counted)
    monkeypatch.setattr(jax.lax, "ragged_dot", ragged_dot)
    with jax.set_mesh(make_mesh(MeshConfig(1, 1, 1, 2), jax.devices()[:2])):
        assert_same(with_gradients(ours, args, cotangent, counted), expected)


def test_a_tokens_result_depends_on_the_token_alone():
    (h, *rest), _, counted = given_arrays()
    y = _jitted(h, *rest, counted)[0]
    others = _jitted(h.at[:, 2:].set(h[0, 0]), *rest, counted)[0]  # as padding would, all of them choose the same experts
    np.testing.assert_array_equal(others[:, :2], y[:, :2])


@pytest.mark.parametrize("mesh", [MeshConfig(1, 8, 1, 1), MeshConfig(1, 2, 1, 4)])
def test_flops_are_those_of_the_chosen_experts(mesh):
    """On any mesh; and no gradient of a frozen matrix is among them."""
    (h, router, matrices, adapters), cotangent, counted = given_arrays()
    routing = 2 * B * T * D * E

    def count(function, *args):
        with jax.set_mesh(make_mesh(mesh)):
            return flops.count(jax.jit(function).trace(*args).jaxpr.jaxpr)

    forward = count(lambda h: ours(h, router, matrices, {}, counted)[0], h)
    assert forward == (3 * FLOPS + routing, 0)
    full = count(jax.grad(lambda h, m: (ours(h, router, m, {}, counted)[0] * cotangent).sum(), (0, 1)), h, matrices)
    frozen = count(jax.grad(lambda h: (ours(h, router, matrices, {}, counted)[0] * cotangent).sum()), h)
    again = 0 if mesh.expert == 1 else 2 * FLOPS  # all but the last product, for one device's tokens at a time
    assert frozen == (6 * FLOPS + 2 * routing + again, again)
    assert full == (9 * FLOPS + 2 * routing + again, again)

    def adapted(h, adapters):
        return (ours(h, router, matrices, adapters, counted)[0] * cotangent).sum()

    lora, sides = count(jax.grad(adapted, (0, 1)), h, adapters), 2 * 2 * B * T * K * R * (D + F)
    assert lora.executed - lora.recomputed == 6 * FLOPS + 2 * routing + 3 * sides


def test_an_expert_axis_that_does_not_divide_is_refused():
    (h, router, matrices, _), _, counted = given_arrays()
    matrices = {name: w[:6] for name, w in matrices.items()}
    with (
        jax.set_mesh(make_mesh(MeshConfig(1, 2, 1, 4))),
        pytest.raises(ConfigError, match="mesh.expert is 4: it must divide the model's 6 experts"),
    ):
        ours(h, router[:6], matrices, {}, counted)
