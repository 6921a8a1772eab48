"""What fills a device's memory, against what the compiler itself refuses."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lpo_jax.plan import abstract, chips, memory
from lpo_jax.plan.result import Plan
from tests.helpers.marks import needs_libtpu

D = 2048
ROW = 2 * D  # bytes of bfloat16


def turns(x, order):
    """Permutes x three times, each time into a buffer that the next turn can have."""
    total = jnp.float32(0)
    for _ in range(3):
        taken = jax.lax.optimization_barrier(jnp.take(x, order + total.astype(jnp.int32), axis=0, mode="clip"))
        total += (taken @ taken[:D]).astype(jnp.float32).sum()
    return total


def compiled(rows, dump):
    """`turns` for a v6e, and the bytes of what it is given."""
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,), devices=chips.topology_devices("v6e:2x2")[:1])
    here = NamedSharding(mesh, PartitionSpec())
    given = jax.ShapeDtypeStruct((rows, D), jnp.bfloat16, sharding=here), jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=here)

    def step(x, order):
        return turns(x, order)

    with jax.set_mesh(mesh):
        traced = jax.jit(step).trace(*given)
    return abstract.compile_step(traced, mesh, str(dump)), {"parameters": rows * (ROW + 4), "optimizer": 0, "gradients": 0, "batch": 0}


@needs_libtpu
def test_buffers_that_never_exist_together_count_once_as_the_compiler_counts(tmp_path):
    """x and one permuted x fill the chip. The three permuted ones together, and what the report lists beside, would take several chips."""
    hbm = chips.CHIPS["v6e"].hbm
    fitting, refused = (int(share * hbm / (2 * ROW)) // 1024 * 1024 for share in (0.98, 1.01))
    step, held = compiled(fitting, tmp_path)
    used = memory.used(step, held)
    assert fitting * ROW <= used["activations"] <= 1.002 * fitting * ROW
    assert 0.98 < sum(used.values()) / hbm < 0.985
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED.*exceeds available HBM") as error:
        compiled(refused, tmp_path / "refused")
    needed = Plan.needed.fget(SimpleNamespace(verdict=str(error.value)))
    assert needed / sum(used.values()) == pytest.approx(refused / fitting, rel=1e-3)

    first, *others = memory.largest(abstract.dumped(str(tmp_path), "step", "after_optimizations-buffer-assignment"))
    assert first == f"{fitting * ROW / chips.GIB:.2f} GiB bf16[{fitting},{D}]" and not any("bf16" in other for other in others)


def test_the_largest_temporaries_lie_side_by_side():
    """Of buffers in the same bytes the largest is named; arguments, and what lies in other memories, isn't."""
    text = """BufferAssignment:
allocation 0: size 536870912, page 0, parameter 1, shape |f32[8192,16384]| at ShapeIndex {}:
 value: <46 y.1 @0> (size=536870912,offset=0): f32[8192,16384]{1,0:T(8,128)}
allocation 1: size 268435456, page 0, thread-local:
 value: <47 z.1 @0> (size=268435456,offset=0): f32[8192,8192]{1,0:T(8,128)}
allocation 2: size 117440512, color 1, page 0, preallocated-temp:
 value: <48 fusion.1 @0> (size=117440512,offset=0): f32[7168,4096]{1,0:T(8,128)S(1)}
allocation 3: size 7340032, page 0, preallocated-temp:
 value: <49 fusion.2 @0> (size=4194304,offset=0): f32[1024,1024]{1,0:T(8,128)}
 value: <50 loop.3{1} @0> (size=4194304,offset=0): f32[1024,1024]{1,0:T(8,128)}
 value: <51 fusion.4 @0> (size=3145728,offset=2097152): bf16[1536,1024]{1,0:T(8,128)(2,1)}
 value: <52 fusion.5 @0> (size=2097152,offset=5242880): s32[512,1024]{1,0:T(8,128)}
 value: <53 tuple.6{} @0> (size=512,offset=4194304): (f32[1024,1024]{1,0:T(8,128)}, s32[512,1024]{1,0:T(8,128)})

Total bytes used: 929300480 (886.25MiB)
"""
    assert memory.largest(text) == ["4.00 MiB f32[1024,1024]", "2.00 MiB s32[512,1024]"]
    assert memory.largest(text, 1) == ["4.00 MiB f32[1024,1024]"]
    assert memory.largest("BufferAssignment:\n") == []


@pytest.mark.parametrize(
    ("verdict", "needed"),
    [
        ("Ran out of memory on HBM, the total memory required for HLO temporaries (26.84G) exceeds available HBM (15.75G).", 26.84),
        ("Ran out of memory in memory space hbm. Used 15.79G of 15.75G hbm. Exceeded hbm capacity by 36.5M.", 15.79),
        ("INTERNAL: a pass has failed", None),
    ],
)
def test_what_the_compiler_needs_is_read_from_both_of_its_refusals(verdict, needed):
    assert Plan.needed.fget(SimpleNamespace(verdict=verdict)) == (needed and needed * chips.GIB)
