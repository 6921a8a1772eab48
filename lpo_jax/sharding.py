"""The mesh, and the one table that says which dimension of which array is cut along which of its axes.

A parameter names its dimensions where it is created ("embed", "heads", ...). `RULES` translates the names to mesh axes. A dimension that
its axes don't divide is replicated, and a warning says so.
"""

import logging
import math
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lpo_jax.config import ConfigError, MeshConfig

log = logging.getLogger(__name__)

RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp", "expert"),
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "experts": "expert",
    "vocab": "tensor",
    "head_dim": None,
    "layers": None,
    "microbatches": None,
}

MESH_AXES = ("data", "fsdp", "expert", "tensor")
"""From the slowest network to the fastest."""

Axes = Sequence[str | None]
"""Names of an array's dimensions. One without a name (None) is never cut."""


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The device mesh ("data", "fsdp", "expert", "tensor"). Its data axis spans the slices, which only a slow network joins.

    Raises:
      ConfigError: the axes don't multiply to the number of devices, or these aren't the topology's.
    """
    devices = jax.devices() if devices is None else devices
    if config.topology is not None and topology_size(config.topology) != len(devices):
        raise ConfigError(
            f"mesh.topology {config.topology} has {topology_size(config.topology)} devices, here are {len(devices)}: "
            "set it to the slice that this runs on, or to null"
        )
    shape = list(mesh_shape(config, len(devices)).values())
    try:
        return _lay_out(shape, devices)
    except NotImplementedError:
        raise ConfigError(
            f"{_told(shape)} can't be laid out on these {len(devices)} chips: each of its axes takes "
            "whole axes of the slice, e.g. on a 4x8 slice 4, 8 or 32 chips; `lpo plan --search` finds one"
        ) from None


def mesh_shape(config: MeshConfig, devices: int) -> dict[str, int]:
    """Devices along each of `MESH_AXES`.

    Raises:
      ConfigError: the axes don't multiply to the number of devices.
    """
    shape = [config.data, config.fsdp, config.expert, config.tensor]
    if shape.count(-1) > 1 or any(size == 0 or size < -1 for size in shape):
        raise ConfigError(f"mesh {shape}: every axis is positive, and at most one is -1 (all that are left)")
    filled = [devices // abs(math.prod(shape)) if size == -1 else size for size in shape]
    if math.prod(filled) != devices:
        fits = ", ".join(str(n) for n in range(2, devices + 1) if devices % n == 0)
        rule = (
            f"its other axes must multiply to {'one of 1, ' * (devices > 1) + (fits or '1')}"
            if -1 in shape
            else f"its axes must multiply to {devices}"
        )
        raise ConfigError(f"{_told(shape)} doesn't fit {devices} device{'s' * (devices != 1)}: {rule}")
    return dict(zip(MESH_AXES, filled, strict=True))


def _told(shape: Sequence[int]) -> str:
    return "mesh " + " ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, shape, strict=True))


def _lay_out(shape: Sequence[int], devices: Sequence[jax.Device]) -> Mesh:
    """The mesh of this shape, whose devices are ordered as suits the network between them. `shape` multiplies to their number."""
    names, types = MESH_AXES, (AxisType.Auto,) * len(MESH_AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})  # CPUs have no slice_index
    if slices == 1:
        return jax.make_mesh(tuple(shape), names, axis_types=types, devices=devices)
    if shape[0] % slices:
        log.warning(
            "mesh.data=%d is no multiple of the %d slices: the other axes communicate over the network between them", shape[0], slices
        )
        return Mesh(np.array(devices).reshape(shape), names, axis_types=types)
    within, across = (shape[0] // slices, *shape[1:]), (slices, 1, 1, 1)
    return Mesh(create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True), names, axis_types=types)


def row_cuts(mesh: Mapping[str, int]) -> int:
    """Into how many parts the rows of a batch are cut, on a mesh of so many devices along each axis."""
    return _ways(RULES["batch"], mesh)


def topology_size(name: str) -> int:
    """How many JAX devices a TPU slice has: one a chip, but two a tpu7x chip.

    Raises:
      ConfigError: the name isn't like v5e:4x4.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
    if match is None:
        raise ConfigError(f"mesh.topology {name!r}: write generation and shape as JAX does, e.g. v5e:4x4, v6e:4x8, v5p:2x2x4, tpu7x:2x2x1")
    return math.prod(map(int, match[2].split("x"))) * (2 if match[1] == "tpu7x" else 1)


def spec(axes: Axes, shape: Sequence[int], mesh_shape: dict[str, int]) -> PartitionSpec:
    """How an array is cut whose dimensions have the names `axes`. A dimension that isn't divisible is replicated."""
    parts: list[str | tuple[str, ...] | None] = []
    for name, size in zip(axes, shape, strict=True):
        rule = RULES[name] if name is not None else None
        ways = _ways(rule, mesh_shape)
        if size % ways:
            log.warning("dimension %r of size %d is not divisible by %s=%d: replicated", name, size, rule, ways)
        parts.append(rule if ways > 1 and size % ways == 0 else None)
    return PartitionSpec(*parts)


def named(mesh: Mesh, axes: Axes, shape: Sequence[int]) -> NamedSharding:
    """`spec` as a sharding on `mesh`."""
    return NamedSharding(mesh, spec(axes, shape, dict(mesh.shape)))


def cuts(name: str) -> int:
    """Inside jit, into how many parts a dimension of this name is cut; outside of any mesh 1."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else _ways(RULES[name], mesh.shape)


def _ways(rule: str | tuple[str, ...] | None, mesh: Mapping[str, int]) -> int:
    return math.prod(mesh[axis] for axis in ((rule,) if isinstance(rule, str) else rule or ()))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Inside jit, lay `x` out as its dimensions' names say. Outside of any mesh, as in a bare function call, nothing is done."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, dict(mesh.shape)))
