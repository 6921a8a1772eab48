"""TPU chips and their slices, as the planner knows them: peak rates, memory, and devices to compile for."""

import importlib.util
import math
import os
import re
import signal
import threading
from dataclasses import dataclass
from typing import NamedTuple

import jax

from foundation.console import captured_stderr
from lpo_jax.config import ConfigError, RunConfig

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """A TPU device as JAX counts them: a chip, but half a tpu7x. Rates from cloud.google.com/tpu/docs, `hbm` from the compiler."""

    hbm: float  # bytes that a program may use
    flops: float  # bfloat16, a second
    hbm_rate: float  # bytes a second
    sent_rate: float  # bytes a second to its neighbours, all links together, one way
    kind: str  # what JAX calls such a device
    shapes: tuple[str, ...]  # of its slices, one of each size


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBIC = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
CHIPS = {
    "v4": Chip(30.75 * GIB, 275e12, 1200e9, 300e9, "TPU v4", CUBIC),
    "v5e": Chip(15.75 * GIB, 197e12, 819e9, 200e9, "TPU v5 lite", FLAT),
    "v5p": Chip(95.73 * GIB, 459e12, 2765e9, 600e9, "TPU v5", CUBIC),
    "v6e": Chip(31.24 * GIB, 918e12, 1638e9, 400e9, "TPU v6 lite", FLAT),
    "tpu7x": Chip(94.74 * GIB, 1153.5e12, 3690e9, 300e9, "TPU7x", CUBIC),
}

NAMES = "write JAX's name of a slice, like v5e:4x4, v6e:4x8, v5p:2x2x4, v4:2x2x2, tpu7x:2x2x1 (v5e:2x4 is Google Cloud's v5litepod-8)"

_LIBTPU = {  # read once, when libtpu is loaded
    "TPU_SKIP_MDS_QUERY": "1",  # don't ask the metadata server of a cloud machine ...
    "TPU_WORKER_HOSTNAMES": "localhost",  # ... which hosts there are
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # without a TPU, several processes may compile
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "1",  # the warnings that a plan repeats
}


def chip_of(config: RunConfig) -> Chip:
    """The chip of `mesh.topology`.

    Raises:
      ConfigError: there is no topology, or its generation is unknown.
    """
    if config.mesh.topology is None:
        raise ConfigError("set mesh.topology to the TPU slice to plan for, e.g. mesh.topology=v5e:4x4")
    return chip_in(config.mesh.topology)


def chip_in(topology: str, key: str = "mesh.topology") -> Chip:
    """The chip of a slice, which `key` names.

    Raises:
      ConfigError: there is no such slice.
    """
    generation, _, shape = topology.partition(":")
    if generation not in CHIPS:
        raise ConfigError(f"{key} {topology!r}: {NAMES}; the generation is one of {', '.join(CHIPS)}")
    if not has_shape(generation, shape):
        raise _unknown(topology, key)
    return CHIPS[generation]


def has_shape(generation: str, shape: str) -> bool:
    """Whether there is such a slice: of those with three sides there are more than Google Cloud lists, which the compiler knows."""
    shapes = CHIPS[generation].shapes
    return shape in shapes or (shapes is CUBIC and re.fullmatch(r"([1-9]\d*x){2}[1-9]\d*", shape) is not None)


def _unknown(topology: str, key: str) -> ConfigError:
    generation = topology.partition(":")[0]
    slices = ", ".join(f"{generation}:{shape}" for shape in CHIPS[generation].shapes)
    return ConfigError(f"{key} {topology!r}: there is no such slice; there are {slices}")


class Peak(NamedTuple):
    """What no program passes on a device."""

    flops: float  # of dense bfloat16, a second
    hbm_rate: float  # bytes a second


_GPUS = {"H100": Peak(989e12, 3350e9), "H200": Peak(989e12, 4800e9), "A100": Peak(312e12, 2039e9)}
"""By a part of what JAX calls them; from NVIDIA's data sheets, of the fastest of each kind."""


def peak_of(kind: str) -> Peak | None:
    """Of a device that JAX calls so (`Device.device_kind`); None: it isn't among those that are known."""
    tpu = next((Peak(chip.flops, chip.hbm_rate) for chip in CHIPS.values() if chip.kind == kind), None)
    return tpu or next((peak for name, peak in _GPUS.items() if name in kind), None)


def chips_in(topology: str) -> int:
    """The chips of a slice, which are what is paid for."""
    return math.prod(int(side) for side in topology.partition(":")[2].split("x"))


def hosts_of(topology: str) -> int:
    """The machines of a slice: of up to eight v5e or v6e chips, else of four chips each."""
    chips = chips_in(topology)
    return 1 if topology.startswith(("v5e:", "v6e:")) and chips <= 8 else max(1, chips // 4)


def doubled(topology: str) -> str:
    """The slice of twice as many chips: v5e:4x8 of v5e:4x4, v5p:2x4x4 of v5p:2x2x4."""
    generation, _, shape = topology.partition(":")
    sides = [int(side) for side in shape.split("x")]
    last_smallest = max(range(len(sides)), key=lambda at: (-sides[at], at))
    sides[last_smallest] *= 2
    return f"{generation}:{'x'.join(map(str, sides))}"


def topology_devices(name: str, key: str = "mesh.topology") -> list[jax.Device]:
    """The devices of a TPU slice in JAX's names, e.g. ``v5e:4x4`` or ``v5p:2x2x2``: to compile for, not to run on. `key` names it.

    Raises:
      ConfigError: libtpu isn't installed, or there is no such slice.
    """
    chip_in(name, key)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("a plan needs the TPU compiler, which runs on any CPU machine: pip install 'lpo-jax[tpu]'")
    for variable, value in _LIBTPU.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    # A v4 chip's two cores are one device, as a run on it sees them.
    options = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    own = signal.getsignal(signal.SIGTERM)
    with captured_stderr():
        try:
            found = list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
        except jax.errors.JaxRuntimeError as error:
            if name.partition(":")[2] in chip_in(name, key).shapes:
                raise ConfigError(f"{key} {name!r}: the TPU compiler can't be asked ({error})") from None
            raise _unknown(name, key) from None
    if own is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, own)  # libtpu would write out its stack at the end
    return found
