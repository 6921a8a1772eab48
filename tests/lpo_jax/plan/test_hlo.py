"""Bytes counted from compiled programs, on programs whose bytes are known."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lpo_jax.plan import chips, hlo
from tests.helpers.marks import needs_libtpu

L, B, D = 5, 64, 256
SHARD = D // 4 * D * 4  # bytes of a quarter of a float32 [D, D]; TPUs multiply, and gather, bfloat16


def chain(ws, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]


def compiled(function, devices, *shapes_and_specs):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,), devices=devices)
    args = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec)) for shape, spec in shapes_and_specs]
    with jax.set_mesh(mesh):
        return jax.jit(function).trace(*args).lower().compile()


def weights_cut(devices):
    """Every layer's matrix must be gathered; the rows of x are cut and stay where they are."""
    return compiled(chain, devices, ((L, D, D), PartitionSpec(None, "x")), ((B, D), PartitionSpec("x")))


@needs_libtpu
def test_collectives_in_a_loop_count_times_its_trips_on_tpus():
    found = hlo.traffic(weights_cut(chips.topology_devices("v5e:2x2")).as_text(), 4)
    assert found.uncounted_loops == 0
    assert sum(found.sent.values()) == L * 3 * SHARD // 2, found


def test_collectives_in_a_loop_count_times_its_trips():
    found = hlo.traffic(weights_cut(jax.devices()[:4]).as_text(), 4)
    assert (found.sent, found.uncounted_loops) == ({"all-gather": L * 3 * SHARD}, 0)


@needs_libtpu
def test_a_loop_that_may_end_early_counts_as_often_as_it_may_run():
    """As the loop over chunks of scored tokens does."""

    def chain(ws, x):
        enough = (x > 0).sum()
        go_on = lambda state: (state[0] < L) & (state[0] < enough)  # noqa: E731
        return jax.lax.while_loop(go_on, lambda state: (state[0] + 1, jnp.tanh(state[1] @ ws[state[0]])), (0, x))[1]

    shapes = ((L, D, D), PartitionSpec(None, "x")), ((B, D), PartitionSpec("x"))
    found = hlo.traffic(compiled(chain, chips.topology_devices("v5e:2x2"), *shapes).as_text(), 4)
    assert found.uncounted_loops == 0 and found.sent["all-gather"] == L * 3 * SHARD // 2, found


@pytest.mark.parametrize(
    ("function", "specs", "sent"),
    [
        # Ring: every device sends its shard n - 1 times; n - 1 parts of the sum twice; n - 1 parts of its rows once.
        (lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), PartitionSpec("x"), {"all-gather": 3 * SHARD}),
        (lambda x: jnp.sum(x, axis=0), PartitionSpec("x"), {"all-reduce": 2 * 3 * D * 4 // 4}),
        (lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec(None, "x")), PartitionSpec("x"), {"all-to-all": 3 * SHARD // 4}),
    ],
)
def test_what_a_ring_sends(function, specs, sent):
    assert hlo.traffic(compiled(function, jax.devices()[:4], ((D, D), specs)).as_text(), 4).sent == sent


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2},{3,4,5}}", 3),
        ("[4,8]<=[32]", 8),
        ("[4,8]<=[8,4]T(1,0)", 8),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", 2),
        ("mesh['a'=4,'b'=2] {'a','b'}", 8),
        ("mesh['a'=8] {'a':(2)4}", 4),
        ("{}", None),
    ],
)
def test_replica_groups_in_every_notation(groups, size):
    assert hlo._group_size(f", channel_id=1, replica_groups={groups}, dimensions={{0}}") == size


def test_memory_reads_slices_and_writes_updates_in_part():
    def one(function, *shapes, donate=()):
        args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        return hlo.traffic(jax.jit(function, donate_argnums=donate).trace(*args).lower().compile().as_text(), 1).memory

    assert one(jnp.matmul, (D, D), (D, D)) == 3 * D * D * 4
    assert one(lambda x: jax.lax.dynamic_slice_in_dim(x, 3, 2) + 1, (D, D)) == 2 * 2 * D * 4
    step = partial(jax.lax.fori_loop, 0, 7, lambda i, x: x.at[i].add(1.0))
    assert one(step, (D, D), donate=0) <= 7 * (2 * D * 4 + 100) + 2 * D * D * 4  # seven rows, and one copy at most
