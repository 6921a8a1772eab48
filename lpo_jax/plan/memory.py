"""What fills a device's memory during a train step."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lpo_jax.plan.abstract import Arguments
from lpo_jax.plan.chips import GIB


def held(arguments: Arguments) -> dict[str, int]:
    """Bytes that each device must hold whatever the compiler does, by kind. Gradients are added up in float32 or wider."""
    state, frozen, batch = arguments
    wide = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.promote_types(x.dtype, jnp.float32), sharding=x.sharding), state.params)
    return {
        "parameters": bytes_of(state.params) + bytes_of(frozen),
        "optimizer": bytes_of(state.opt_state) + bytes_of((state.step, state.skipped, state.skipped_in_row)),
        "gradients": bytes_of(wide),
        "batch": bytes_of(batch),
    }


def used(compiled: jax.stages.Compiled, held: dict[str, int]) -> dict[str, int]:
    """Bytes on each device, by kind: what is `held`, and two kinds more.

    ``activations`` are all other temporaries at their peak, gathered weights among them, as the compiler packs them: buffers that never exist
    together share bytes. ``program`` is the code, outputs that reuse no argument, and padding by the device's tiling. The compiler refuses a
    program by the same sum. `peak_memory_in_bytes` is another: it counts what lies in the cores' own memory, and no gaps of the packing.
    """
    stats = compiled.memory_analysis()
    assert stats is not None
    arguments = held["parameters"] + held["optimizer"] + held["batch"]
    gradients = min(held["gradients"], stats.temp_size_in_bytes)
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    program = stats.generated_code_size_in_bytes + outputs + stats.argument_size_in_bytes - arguments
    return held | {"gradients": gradients, "activations": stats.temp_size_in_bytes - gradients, "program": program}


def largest(assignment: str, number: int = 3) -> list[str]:
    """The largest temporaries of the compiler's buffer assignment, as "250.00 MiB f32[2048,32000]".

    Buffers that never exist together share bytes of the one allocation that holds all temporaries. Of those the largest is named, so the sizes
    add up to no more than the temporaries take. The compiler's memory report adds them all up, and what lies outside of that allocation too.
    """
    block = re.search(r"^allocation \d+: size \d+, page \d+, preallocated-temp:\n((?: .*\n)*)", assignment, re.MULTILINE)
    found = re.findall(r"\(size=(\d+),offset=(\d+)\): (\w+\[[\d,]*\])", block[1] if block else "")
    named: list[tuple[int, int, str]] = []
    for bytes_, start, array in sorted(((int(a), int(b), array) for a, b, array in found), reverse=True):
        if len(named) < number and all(start + bytes_ <= other or other + its <= start for its, other, _ in named):
            named.append((bytes_, start, array))
    return [f"{in_words(bytes_)} {array}" for bytes_, _, array in named]


def uncut(arguments: Arguments, mesh: Mesh, hbm: float) -> list[str]:
    """Warnings of parameters that a device holds more of than its share, where that is a hundredth of its memory or more."""
    warnings = []
    for path, x in jax.tree.leaves_with_path((arguments[0].params, arguments[1])):
        ways = x.size // _shard_size(x)
        excess = (_shard_size(x) - x.size // (mesh.shape["fsdp"] * mesh.shape["tensor"])) * bits(x.dtype) // 8
        if excess > hbm / 100:
            name = ".".join(getattr(key, "key", None) or key.name for key in path[1:])
            warnings.append(f"{name} is cut {ways} ways, not fsdp * tensor: {excess / GIB:.2f} GiB more than its share on every device")
    return warnings


def in_words(bytes_: float) -> str:
    """As people read them."""
    return f"{bytes_ / GIB:.2f} GiB" if bytes_ >= GIB / 10 else f"{bytes_ / 2**20:.2f} MiB"


def bytes_of(tree: Any) -> int:
    """What one device holds of a tree of `jax.ShapeDtypeStruct`s with shardings."""
    return sum(_shard_size(x) * bits(x.dtype) // 8 for x in jax.tree.leaves(tree))


def bits(dtype: np.dtype) -> int:
    """Of one number: 4-bit ones lie two in a byte."""
    return 4 if dtype in (jnp.int4, jnp.uint4) else 8 * dtype.itemsize


def _shard_size(x: jax.ShapeDtypeStruct) -> int:
    assert x.sharding is not None
    return math.prod(x.sharding.shard_shape(x.shape))
