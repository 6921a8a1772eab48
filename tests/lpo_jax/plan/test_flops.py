"""Floating-point operations counted from jaxprs, against counts by hand."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec

from lpo_jax.config import MeshConfig, ModelConfig
from lpo_jax.model.decoder import Model
from lpo_jax.plan import chips, flops
from lpo_jax.sharding import make_mesh

D = 8
PRODUCT = 2 * D**3


def counted(function, *args):
    return flops.count(jax.jit(function).trace(*args).jaxpr.jaxpr)


def square():
    return jnp.ones((D, D))


def test_matrix_products():
    assert counted(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), jnp.ones((3, 4, 5)), jnp.ones((3, 5, 6))) == (2 * 3 * 4 * 5 * 6, 0)
    assert counted(lambda a, b: a @ b + a * b, square(), square()) == (PRODUCT, 0)
    assert (
        counted(jax.grad(lambda w, x: (jnp.sin(x @ w) @ w).sum()), square(), square()).executed == 5 * PRODUCT
    )  # the input has no gradient


def test_a_scans_body_counts_times_its_length():
    def chain(x, ws):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, ws)[0]

    assert counted(chain, square(), jnp.ones((7, D, D))) == (7 * PRODUCT, 0)
    assert counted(lambda x, ws: jax.lax.scan(lambda x, _: (chain(x, ws), None), x, None, length=3)[0], square(), jnp.ones((7, D, D))) == (
        21 * PRODUCT,
        0,
    )


def test_what_rematerialisation_repeats_is_told_apart():
    def loss(ws, x, wrap):
        return jax.lax.scan(wrap(lambda x, w: (jnp.sin(x @ w) @ w, None)), x, ws)[0].sum()

    args = jnp.ones((7, D, D)), square()
    plain = counted(jax.grad(lambda *a: loss(*a, wrap=lambda f: f)), *args)
    again = counted(jax.grad(lambda *a: loss(*a, wrap=jax.checkpoint)), *args)
    assert plain == (7 * 6 * PRODUCT, 0)
    # sin's argument is computed a second time; the body's last product isn't needed for its own gradient.
    assert again == (7 * 7 * PRODUCT, 7 * PRODUCT)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed")
def test_policies_recompute_less_the_more_they_keep():
    B, T, D, N, K, H, F, L = 2, 128, 32, 2, 1, 16, 64, 3
    shape = ModelConfig("llama", 64, D, L, N, K, H, F, max_positions=T)
    mesh = make_mesh(MeshConfig(data=1), chips.topology_devices("v5e:2x2")[:1])

    def of(remat):
        model = Model(shape, remat=remat)
        tokens = jnp.zeros((B, T), jnp.int32)
        with jax.set_mesh(mesh):
            return flops.count(jax.jit(jax.grad(lambda p, tokens: model.logits(p, tokens).sum())).trace(model.shapes(), tokens).jaxpr.jaxpr)

    counts = {remat: of(remat) for remat in ("none", "dots", "attention", "block")}
    assert len({c.executed - c.recomputed for c in counts.values()}) == 1
    linear = 2 * B * T * (D * (N + 2 * K) * H + N * H * D + 2 * D * F)  # all but `down`, which nothing behind it needs
    assert counts["none"].recomputed == counts["dots"].recomputed == 0
    assert counts["attention"].recomputed == L * linear
    # One block of keys and queries: the scores, and their product with the values.
    assert counts["block"].recomputed == L * (linear + 2 * 2 * B * N * T * T * H)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed")
@pytest.mark.parametrize("expert", [1, 4])
def test_of_a_mixture_the_chosen_experts_count(expert):
    B, T, D, F, L, E = 4, 128, 32, 16, 3, 8
    mesh = make_mesh(MeshConfig(1, 4 // expert, 1, expert), chips.topology_devices("v5e:2x2"))

    def of(remat, chosen):
        shape = ModelConfig("qwen3_moe", 64, D, L, 2, 1, 16, 64, max_positions=T, experts=E, experts_per_token=chosen, d_expert=F)
        model, tokens = Model(shape, remat=remat), jnp.zeros((B, T), jnp.int32)
        with jax.set_mesh(mesh):
            return flops.count(jax.jit(jax.grad(lambda p, tokens: model.logits(p, tokens).sum())).trace(model.shapes(), tokens).jaxpr.jaxpr)

    one, two, dots = of("none", 1), of("none", 2), of("dots", 2)
    expert_of_all = L * 3 * 2 * B * T * D * F  # its three products, for every token
    useful = [count.executed - count.recomputed for count in (one, two, dots)]
    assert useful[1] - useful[0] == 3 * expert_of_all and useful[2] == useful[1]
    again = 0 if expert == 1 else 2 * 2 * expert_of_all // 3  # all but the last product
    assert two.recomputed == again and dots.recomputed == again + L * 2 * B * T * D * E  # the router's scores


def test_branches():
    def either(x, on):
        return jax.lax.cond(on, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert counted(either, square(), True) == (2 * PRODUCT, 0)  # the larger

    def by_platform(x):
        return jax.lax.platform_dependent(x, tpu=lambda x: x @ x @ x, default=lambda x: x)

    assert counted(by_platform, square()) == (2 * PRODUCT, 0)


def test_per_device_programs_count_once_a_device():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = PartitionSpec("a", None)
    product = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=spec, out_specs=spec, axis_names={"a"}, check_vma=False)
    assert counted(product, jnp.ones((16, D))) == (4 * 2 * 4 * 4 * D, 0)


@pytest.mark.parametrize("estimate", [None, pl.CostEstimate(flops=1000, transcendentals=0, bytes_accessed=0)])
def test_kernels_count_as_they_say_or_their_body_times_the_grid(estimate):
    def kernel(x, y):
        y[...] = x[...] @ x[...]

    block = pl.BlockSpec((D, D), lambda i: (i, 0))
    call = pl.pallas_call(
        kernel, jax.ShapeDtypeStruct((5 * D, D), np.float32), grid=(5,), in_specs=[block], out_specs=block, cost_estimate=estimate
    )
    assert counted(call, jnp.ones((5 * D, D))).executed == (5 * PRODUCT if estimate is None else 1000)


def test_a_while_loop_with_products_is_refused():
    def loop(x, n):
        return jax.lax.while_loop(lambda c: c[1] < n, lambda c: (c[0] @ c[0], c[1] + 1), (x, 0))[0]

    with pytest.raises(ValueError, match="unknown number"):
        counted(loop, square(), 3)
