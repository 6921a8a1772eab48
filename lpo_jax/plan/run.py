"""What a whole run takes: its stages' steps, tokens, hours and dollars, and its checkpoints."""

import dataclasses
from dataclasses import dataclass

from foundation.files import Json
from lpo_jax.config import RunConfig
from lpo_jax.plan.chips import chips_in, hosts_of
from lpo_jax.plan.prices import Price, Prices
from lpo_jax.plan.result import Plan
from lpo_jax.plan.rows import Length
from lpo_jax.train.run_dir import checkpoints_at_once

PESSIMISTIC = 0.4
"""The share of its step's bound that a run reaches at worst, as we assume. Tuned public runs of dense models reach 45 to 50 % of the peak
on v6e (tpu-recipes), 60 to 67 % on v5e and 60 to 72 % on v5p (MaxText); this program has met no TPU yet. The bound itself lies below the
peak, so that 40 % of it is less than any of these."""

NOTICE = 30
"""Seconds from a spot machine's notice to its end, as Google Cloud documents it."""

WRITE_RATE = 1.0
"""GB that a host writes to a bucket in a second, as we assume. Cloud Storage FUSE's own benchmark writes 2.6 to 4.6 from a machine of
100 Gbit/s; a checkpoint is copied from the chips and packed as well."""

Range = tuple[float, float]
"""From what no run can beat to what we assume at worst."""


@dataclass(frozen=True)
class Run:
    """What the planned stages of a run take together."""

    config: RunConfig
    plans: list[Plan]
    lengths: list[Length]  # of the same stages
    prices: Prices
    write_rate: float  # GB a second and host

    @staticmethod
    def of(config: RunConfig, plans: list[Plan], prices: Prices, write_rate: float = WRITE_RATE) -> "Run":
        return Run(config, plans, [Length.of(config, plan.stage) for plan in plans], prices, write_rate)

    @property
    def worst(self) -> Plan:
        """The plan of the stage that doesn't fit, or of that which comes nearest to it."""
        return max(self.plans, key=lambda plan: (not plan.fits, plan.needed or plan.used))

    @property
    def chips(self) -> int:
        return chips_in(self.worst.topology)

    @property
    def hosts(self) -> int:
        return hosts_of(self.worst.topology)

    @property
    def price(self) -> Price | None:
        """What a chip of the slice costs; None: the table doesn't say."""
        return self.prices.chips.get(self.worst.topology.partition(":")[0])

    @property
    def hours(self) -> Range | None:
        """Of all steps together; None if one stage's number is unknown, or it doesn't fit."""
        each = [hours(plan, length) for plan, length in zip(self.plans, self.lengths, strict=True)]
        known = [found for found in each if found is not None]
        return (sum(low for low, _ in known), sum(high for _, high in known)) if len(known) == len(each) else None

    def dollars(self, price: float | None) -> Range | None:
        """What these hours cost at so much a chip and hour."""
        return None if price is None or self.hours is None else (self.hours[0] * self.chips * price, self.hours[1] * self.chips * price)

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint's arrays, in the stage where they take most."""
        return max(plan.checkpoint for plan in self.plans)

    @property
    def writing(self) -> float:
        """Seconds that a checkpoint takes to be written, all hosts writing their parts."""
        return self.checkpoint / (self.hosts * self.write_rate * 1e9)

    @property
    def slowest(self) -> Range | None:
        """Seconds of the slowest stage's step; None if one doesn't fit."""
        least = max(plan.step_seconds for plan in self.plans)
        return (least, least / PESSIMISTIC) if self.worst.fits else None

    @property
    def at_notice(self) -> Range | None:
        """Seconds from a notice to a checkpoint that is there: the step under way ends first."""
        return None if self.slowest is None else (self.slowest[0] + self.writing, self.slowest[1] + self.writing)

    def facts(self) -> Json:
        """All of it as JSON has it, the stages' plans too."""
        price = self.price
        stages = [
            plan.facts() | dataclasses.asdict(length) | {"hours": hours(plan, length)}
            for plan, length in zip(self.plans, self.lengths, strict=True)
        ]
        return {
            "fits": self.worst.fits,
            "worst": self.worst.stage,
            "stages": {plan["stage"]: plan for plan in stages},
            "hours": self.hours,
            "pessimistic_share": PESSIMISTIC,
            "chips": self.chips,
            "hosts": self.hosts,
            "prices": {
                "date": self.prices.date,
                "source": self.prices.source,
                "chip_hour": None if price is None else dataclasses.asdict(price),
                "on_demand": self.dollars(price.on_demand if price else None),
                "spot": self.dollars(price.spot if price else None),
            },
            "checkpoint": {
                "bytes": self.checkpoint,
                "at_once": checkpoints_at_once(self.config),
                "write_rate": self.write_rate,
                "seconds": self.writing,
                "seconds_at_notice": self.at_notice,
                "notice": NOTICE,
            },
        }


def hours(plan: Plan, length: Length) -> Range | None:
    """Of a stage's steps: at its step's bound, and at `PESSIMISTIC` of that speed."""
    if not plan.fits or length.steps is None:
        return None
    least = length.steps * plan.step_seconds / 3600
    return least, least / PESSIMISTIC
