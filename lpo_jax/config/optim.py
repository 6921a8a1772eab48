"""The optimizers' part of the schema: what all have, and a dataclass for each with its own options."""

from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from foundation.errors import ConfigError
from foundation.settings import Decay, PositiveNumber, Settings, Share, Weight

Moments = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class OptimOptions(Settings):
    """What every optimizer has: a learning rate with its schedule, weight decay, and clipping by global norm."""

    name: str
    lr: PositiveNumber
    """peak learning rate"""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """how it goes on after a linear warm-up: it falls along a cosine or a line, stays, or (warm-up-stable-decay) stays and then falls along a
    line"""
    warmup_ratio: Share = 0.05
    """share of the stage's steps"""
    cooldown_ratio: Share = 0.1
    """wsd: share of the stage's steps, its last ones, in which the rate falls"""
    final_lr_ratio: Share = 0.0
    """what falls ends at this share of `lr`"""
    weight_decay: Weight = 0.0
    """on matrices only, times the learning rate; the gradient's moments don't see it"""
    clip_norm: PositiveNumber = 1.0
    """gradients are scaled down to this global norm"""

    def __post_init__(self) -> None:
        if self.schedule != "wsd" and self.cooldown_ratio != 0.1:
            raise ConfigError(f"cooldown_ratio is an option of schedule wsd, this is {self.schedule}; take it out")
        if self.schedule == "constant" and self.final_lr_ratio:
            raise ConfigError("final_lr_ratio: schedule constant doesn't fall; take it out, or choose linear, cosine or wsd")
        if self.schedule == "wsd" and self.warmup_ratio + self.cooldown_ratio > 1:
            raise ConfigError(
                f"warmup_ratio ({self.warmup_ratio}) and cooldown_ratio ({self.cooldown_ratio}) are more than the whole stage; lower one"
            )


@dataclass(frozen=True, kw_only=True)
class AdamW(OptimOptions):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    name: Literal["adamw"] = "adamw"
    b1: Decay = 0.9
    """decay of the first moment"""
    b2: Decay = 0.999
    """decay of the second moment"""
    eps: PositiveNumber = 1e-8
    """added to the root of the second moment"""
    moments: Moments | None = None
    """dtype of the first moment; null: the parameters'. The second always has theirs: what a step adds to it bfloat16 would round away"""


@dataclass(frozen=True, kw_only=True)
class Adafactor(OptimOptions):
    """Adam whose second moment is kept as two factors, of a matrix's rows and columns (Shazeer and Stern 2018)."""

    name: Literal["adafactor"] = "adafactor"
    decay: PositiveNumber = 0.8
    """after t steps the second moment's decay is 1 - t^-decay"""
    relative: bool = True
    """an update is `lr` times the root mean square of what it changes; false: `lr` alone, as in adamw"""
    momentum: Decay | None = None
    """decay of a moment of the updates; null: none is kept"""
    moments: Moments | None = None
    """dtype of that moment; null: the parameters'"""


@dataclass(frozen=True, kw_only=True)
class Lion(OptimOptions):
    """The sign of a moment (Chen et al. 2023). `lr` is 3 to 10 times smaller than adamw's, and `weight_decay` larger by as much."""

    name: Literal["lion"] = "lion"
    b1: Decay = 0.9
    """decay of the moment in the update"""
    b2: Decay = 0.99
    """decay of the moment that is kept"""
    moments: Moments | None = None
    """dtype of the moment; null: the parameters'"""


@dataclass(frozen=True, kw_only=True)
class Muon(OptimOptions):
    """A moment made orthogonal, matrix by matrix (Jordan 2024); embeddings, head, norms and biases get adamw, with Nesterov's momentum."""

    name: Literal["muon"] = "muon"
    momentum: Decay = 0.95
    """decay of the matrices' moment"""
    rms: PositiveNumber | None = 0.2
    """root mean square of a matrix's update, so that adamw's learning rates fit (Liu et al. 2025); null: sqrt(max(1, outputs / inputs)) times
    an orthogonal matrix"""
    b1: Decay = 0.9
    """adamw's"""
    b2: Decay = 0.999
    """adamw's"""
    eps: PositiveNumber = 1e-8
    """adamw's, and added to a matrix's norm"""
    moments: Moments | None = None
    """dtype of all first moments; null: the parameters'"""


@dataclass(frozen=True, kw_only=True)
class Sgd(OptimOptions):
    """Gradient descent."""

    name: Literal["sgd"] = "sgd"
    momentum: Decay | None = None
    """decay of the sum of gradients; null: none is kept"""
    moments: Moments | None = None
    """dtype of that sum; null: the parameters'"""


OPTIMIZERS: dict[str, type[OptimOptions]] = {"adamw": AdamW, "adafactor": Adafactor, "lion": Lion, "muon": Muon, "sgd": Sgd}


def _named(raw: Any) -> Any:
    """Where a file names no optimizer, it is AdamW."""
    return {"name": "adamw"} | raw if isinstance(raw, dict) else raw


if TYPE_CHECKING:
    Optim = OptimOptions
else:
    Optim = Annotated[reduce(or_, OPTIMIZERS.values()), Field(discriminator="name"), BeforeValidator(_named)]
