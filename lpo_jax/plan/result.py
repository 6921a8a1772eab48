"""A plan: what the TPU compiler said about a run's step, and what follows from it."""

import dataclasses
import re
from dataclasses import dataclass

import pydantic

from foundation.files import Json
from lpo_jax.plan import hlo
from lpo_jax.plan.chips import CHIPS, Chip
from lpo_jax.plan.rows import PlannedRows


@dataclass(frozen=True)
class Plan:
    """What the compiler said about a step, and what follows. Bytes are those of one device, FLOPs those of all."""

    model: str
    parameters: int
    trained: str  # "all", or the adapters
    topology: str
    devices: int
    mesh: dict[str, int]
    remat: str
    stage: str
    rows: int  # in a step
    accumulate: int
    row: PlannedRows
    verdict: str  # empty where it fits, else the compiler's own words
    memory: dict[str, int]  # by kind; without "activations" where it doesn't fit
    checkpoint: int  # bytes of its arrays, of all devices
    largest: list[str]  # temporaries
    model_flops: int
    executed_flops: int  # with what rematerialisation repeats
    traffic: hlo.Traffic | None
    warnings: list[str]
    compile_seconds: float
    versions: dict[str, str]

    @property
    def fits(self) -> bool:
        return not self.verdict

    @property
    def too_large(self) -> bool:
        """Whether memory is what the compiler has against it."""
        return "RESOURCE_EXHAUSTED" in self.verdict

    @property
    def chip(self) -> Chip:
        return CHIPS[self.topology.partition(":")[0]]

    @property
    def used(self) -> int:
        """Bytes of a device's memory, as far as they are known."""
        return sum(self.memory.values())

    @property
    def needed(self) -> float | None:
        """The bytes of a device that the compiler names in its verdict."""
        match = re.search(r"(?:\(|Used )([\d.]+)([KMGT])(?:\) exceeds| of )", self.verdict)
        return float(match[1]) * 1024 ** (1 + "KMGT".index(match[2])) if match else None

    @property
    def seconds(self) -> dict[str, float]:
        """How long a step takes at the chip's peak rates, by what limits it."""
        times = {"compute": self.executed_flops / self.devices / self.chip.flops}
        if self.traffic is not None:
            times["memory"] = self.traffic.memory / self.chip.hbm_rate
            times["network"] = sum(self.traffic.sent.values()) / self.chip.sent_rate
        return times

    @property
    def step_seconds(self) -> float:
        """The roofline: everything overlaps but the slowest."""
        return max(self.seconds.values())

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation at the roofline; what rematerialisation repeats is no use."""
        return self.model_flops / (self.step_seconds * self.devices * self.chip.flops)

    @property
    def tokens_per_s(self) -> float:
        return self.rows * self.row.tokens / self.step_seconds

    @property
    def pairs_per_s(self) -> float:
        return self.rows * self.row.mean_pairs / self.step_seconds

    def facts(self) -> Json:
        """All of it, with what is derived, as JSON has it."""
        derived = ("fits", "used", "seconds", "step_seconds", "mfu", "tokens_per_s", "pairs_per_s")
        return dataclasses.asdict(self) | {"hbm": int(self.chip.hbm)} | {name: getattr(self, name) for name in derived}

    @staticmethod
    def from_facts(facts: Json) -> "Plan":
        """The inverse of `facts`."""
        return pydantic.TypeAdapter(Plan).validate_python(facts)
