"""TPU slices: their names in JAX (v5e:4x4), in Google Cloud (v5litepod-16) and on GKE."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import job
from launch.common import LaunchError
from launch.job import Job
from lpo_jax.plan.chips import CHIPS, chips_in, has_shape, hosts_of


@dataclass(frozen=True)
class Generation:
    """What Google Cloud calls one generation of TPUs."""

    gcloud: str  # accelerator types are this, a dash and a count
    counted: int  # what one chip counts for in an accelerator type: v4, v5p and tpu7x count cores
    runtime: str | None  # software version of its TPU VMs; None: there are none, GKE alone has it
    gke: str  # node label cloud.google.com/gke-tpu-accelerator


GENERATIONS = {
    "v4": Generation("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice"),
    "v5e": Generation("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice"),
    "v5p": Generation("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice"),
    "v6e": Generation("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice"),
    "tpu7x": Generation("tpu7x", 2, None, "tpu7x"),
}


@dataclass(frozen=True)
class Slice:
    """Chips that are wired to one another, e.g. ``Slice("v5e", "4x4")``."""

    generation: str
    topology: str

    @property
    def name(self) -> str:
        """As in JAX and `lpo plan`: v5e:4x4."""
        return f"{self.generation}:{self.topology}"

    @property
    def facts(self) -> Generation:
        return GENERATIONS[self.generation]

    @property
    def shapes(self) -> tuple[str, ...]:
        """The topologies that its generation's accelerator types stand for, one a size."""
        return CHIPS[self.generation].shapes

    @property
    def chips(self) -> int:
        return chips_in(self.name)

    @property
    def hosts(self) -> int:
        """Virtual machines, each with a process of its own."""
        return hosts_of(self.name)

    @property
    def accelerator_type(self) -> str:
        """As in Google Cloud: v5litepod-16.

        Raises:
          LaunchError: the topology isn't the one that the type of this size stands for.
        """
        if self.topology not in self.shapes:
            raise LaunchError(f"{self.name} has no accelerator type of its own; those of {self.generation}: {', '.join(self.shapes)}")
        return f"{self.facts.gcloud}-{self.chips * self.facts.counted}"

    def gcloud_flags(self) -> list[str]:
        """How `gcloud compute tpus ... create` is asked for it."""
        if self.topology in self.shapes:
            return [f"--accelerator-type={self.accelerator_type}"]
        return [f"--type={self.facts.gcloud}", f"--topology={self.topology}"]


def parse(text: str) -> Slice:
    """A slice from either name: ``v5e:4x4`` or ``v5litepod-16``.

    Raises:
      LaunchError: there is no such slice; the message lists those there are.
    """
    generation, _, topology = text.partition(":")
    if generation in GENERATIONS:
        if has_shape(generation, topology):
            return Slice(generation, topology)
        raise LaunchError(f"TPU={text}: {generation} has the topologies {', '.join(CHIPS[generation].shapes)}")
    kind = text.rpartition("-")[0]
    for generation, facts in GENERATIONS.items():
        if kind == facts.gcloud:
            sizes = {(found := Slice(generation, topology)).accelerator_type: found for topology in CHIPS[generation].shapes}
            if text in sizes:
                return sizes[text]
            raise LaunchError(f"TPU={text}: {kind} comes as {', '.join(sizes)}")
    raise LaunchError(f"TPU={text}: write e.g. v5e:4x4, v6e:4x8, v5p:2x2x4 (JAX's names) or v5litepod-16, v6e-32, v5p-32 (Google Cloud's)")


def of_job(given: str | None, command: str, words: Sequence[str]) -> tuple[Slice, Job]:
    """The slice that a job asks for, by TPU= or else by its config, and the job, told of it.

    Raises:
      LaunchError: neither names one, or as `check_paths`.
      UserError: as `job.read`.
    """
    asked = job.read(command, words)
    job.check_paths(asked)
    text = given or (asked.config and asked.config.mesh.topology)
    if not text:
        raise LaunchError("TPU: which slice, e.g. TPU=v5e:4x4 or TPU=v5litepod-16")
    wanted = parse(text)
    return wanted, asked.on(wanted.name)


def on_tpu(root: Path = Path("/")) -> bool:
    """Whether this machine is a TPU host: GKE's variables for libtpu, or Google's chips and their device files."""
    if os.environ.get("TPU_WORKER_ID") and os.environ.get("TPU_WORKER_HOSTNAMES"):
        return True
    files = [path for pattern in ("dev/accel[0-9]*", "dev/vfio/[0-9]*") for path in glob.glob(str(root / pattern))]
    vendors = [Path(path).read_text().strip() for path in glob.glob(str(root / "sys/bus/pci/devices/*/vendor"))]
    return bool(files) and "0x1ae0" in vendors
