"""The schema of a run's config: frozen dataclasses, whose defaults stand here alone and whose texts explain each key.

A YAML file lists what differs from the defaults; `lpo config FILE` prints the whole of it with these explanations.
"""

import math
import os
import re
from dataclasses import dataclass, field, fields
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from data_pipeline import order
from foundation.errors import ConfigError
from foundation.settings import LARGEST, Count, Decay, NonEmpty, Positive, PositiveNumber, Settings
from lpo_jax import objectives
from lpo_jax.config.optim import Optim
from lpo_jax.config.shape import ModelConfig, check

ONCE_EVERYWHERE = {
    "mode": "clean", "beta": None, "gamma": None, "alpha": None, "empty_side": "detach", "norm_len": "code", "imitation": "sum",
    "off_mask": 1e-6, "label_smoothing": 0.0, "score_prompt": False, "kl": None,
}  # fmt: skip
"""Options that every objective once had, with their defaults. Files written then list all of them."""

EITHER = {"epochs": "steps", "steps": "epochs", "path": "new", "new": "path"}
"""Keys of which a config sets just one: `steps` on the command line takes the place of the file's `epochs`, `model.path` that of its `model.new`."""


def _own_options(raw: Any) -> Any:
    """An objective as it stands in a file, without the options that it hasn't and that a file of old leaves at null or at their default."""
    if not isinstance(raw, dict) or str(raw.get("name")) not in objectives.OBJECTIVES:
        return raw
    own = {field.name for field in fields(objectives.OBJECTIVES[raw["name"]].options)}  # type: ignore[arg-type]
    return {
        key: value for key, value in raw.items() if key in own or key not in ONCE_EVERYWHERE or value not in (None, ONCE_EVERYWHERE[key])
    }


if TYPE_CHECKING:
    Objective = objectives.Options
else:
    Objective = Annotated[
        reduce(or_, (record.options for record in objectives.OBJECTIVES.values())),
        Field(discriminator="name"),
        BeforeValidator(_own_options),
    ]

Remat = Literal["none", "dots", "attention", "block"]

Axis = Annotated[int, Field(ge=-1, le=LARGEST)]


def _check_sets(sets: "tuple[ShardSet, ...]") -> None:
    paths, weights = [os.path.normpath(one.path) for one in sets], [one.weight for one in sets if one.weight is not None]
    check(bool(paths), "data: name a shard set, e.g. [{path: data/pairs}], or null: the run's data")
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise ConfigError(f"data: {twice} stands there twice; to read it more often give it a larger weight")
    check(len(weights) in (0, len(paths)), "data: either each set has a weight, or none")
    if weights and 0 in (parts := order.shares(weights)):
        raise ConfigError(
            f"data: {paths[parts.index(0)]} has less than one row in {order.CYCLE} by its weight; give it more, or take it out"
        )


@dataclass(frozen=True)
class LoraConfig(Settings):
    """Low-rank adapters (Hu et al. 2021): W + scale * A B is trained through A and B; W stays as it is."""

    rank: Positive
    """columns of A"""
    alpha: PositiveNumber
    """the adapters' product is scaled by alpha / rank"""
    dropout: Decay = 0.0
    """of the adapters' inputs: of each token's and each module's on its own, as in PEFT"""
    targets: str = r"blocks\.(q|k|v|o|gate|up|down)|head"
    """regular expression, matched against whole parameter paths; a tied head is called tied_head: its adapter leaves the embeddings alone. The default
    is every matrix but a mixture's experts (blocks.expert_gate, _up and _down), each of which gets an adapter of its own; a router has none"""
    rslora: bool = False
    """scale by alpha / sqrt(rank) instead (Kalajdzievski 2023): divided by rank, adapters of a high rank learn slowly"""
    dora: bool = False
    """weight-decomposed (Liu et al. 2024): the norm of each output's column of W + scale * A B is trained on its own; not for heads and experts"""

    def __post_init__(self) -> None:
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ConfigError(f"targets {self.targets!r} is no regular expression: {error}") from None

    @property
    def scale(self) -> float:
        """What the adapters' product is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class ModelSource(Settings):
    """Where the model comes from, and how it is computed. Exactly one of `path` and `new` is set."""

    path: str | None = None
    """a directory with config.json and *.safetensors, or a hub id"""
    shape: str | None = None
    """a copy of path's config.json: `lpo plan` needs no more of a model; a run refuses weights that differ"""
    adapter: str | None = None
    """a PEFT directory, merged into the weights first, as the authors do between SFT and LPO; its modules_to_save replace the weights'"""
    new: ModelConfig | None = None
    """a randomly initialised model of this shape"""
    compute_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """matmuls; norms, softmax and losses are float32"""
    param_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """the weights that the optimizer updates"""
    remat: Remat = "dots"
    """what a layer keeps for the backward pass, which recomputes the rest. block: its input; attention: and attention's output; dots: and
    every other matrix product's, so that little is left to recompute (on CPUs it is faster than none); none: everything"""
    attention: Literal["auto", "kernel", "einsum"] = "auto"
    """what computes a training step's attention; the result is the same up to rounding. kernel: a Pallas kernel, which there is for TPUs and GPUs;
    einsum: the same blocks in plain XLA, slower there; auto: the kernel where there is one. The log says which ran"""
    lora: LoraConfig | None = None
    """train adapters instead of the weights"""
    quantize: Literal["int8", "int4", "nf4"] | None = None
    """under adapters, how the layers' frozen matrices are held: int8 with a scale for each output, int4 or nf4 with one for 32 inputs (4.5 bits a
    weight); null: in param_dtype, as embeddings, head, norms, biases and a mixture's router always are"""

    def __post_init__(self) -> None:
        check(
            (self.path is None) != (self.new is None),
            "model: set exactly one of model.path (a Hugging Face directory) and model.new (a shape)",
        )
        check(self.shape is None or self.new is None, "model.shape describes model.path; model.new is a shape itself")
        check(self.quantize is None or self.lora is not None, "model.quantize is for a frozen base: set model.lora, or take it out")
        check(
            self.quantize is None or self.adapter is None,
            "model.adapter can't be merged into a quantised model: merge it into the float one once (peft's merge_and_unload, "
            "or `lpo export --merge`), and give that as model.path",
        )


@dataclass(frozen=True)
class ShardSet(Settings):
    """One of the shard sets that a stage is trained on."""

    path: NonEmpty
    """its directory"""
    weight: PositiveNumber | None = None
    """its share of the stage's rows, in proportion to the others' weights; null, for all: the sets are joined, each row once an epoch"""


@dataclass(frozen=True)
class StageConfig(Settings):
    """One stage of a run: an objective, an optimizer and a length. Set one of `epochs` and `steps`."""

    objective: Objective
    """what is optimised: its name, and the options of that objective"""
    optim: Optim
    """the optimizer, fresh in each stage: its name, and the options of that optimizer; without a name adamw"""
    batch_rows: Positive
    """packed rows in one optimizer step, over all devices"""
    accumulate: Positive = 1
    """microbatches that a step is cut into"""
    data: tuple[ShardSet, ...] | None = None
    """the shard sets that this stage is trained on; null: the run's. Held-out metrics are always those of the run's"""
    epochs: PositiveNumber | None = None
    """the length in passes over the train split; of several sets: in as many rows as they have together"""
    steps: Positive | None = None
    """the length in optimizer steps"""

    def __post_init__(self) -> None:
        check((self.epochs is None) != (self.steps is None), "stage: set exactly one of epochs and steps")
        check(
            self.batch_rows % self.accumulate == 0,
            f"stage: batch_rows ({self.batch_rows}) must be a multiple of accumulate ({self.accumulate})",
        )
        if self.data is not None:
            _check_sets(self.data)


@dataclass(frozen=True)
class MeshConfig(Settings):
    """Devices along each axis; one of them may be -1, "all that are left"."""

    data: Axis = 1
    """replicas: whole copies of the model"""
    fsdp: Axis = -1
    """the batch and every parameter are cut along this axis"""
    tensor: Axis = 1
    """heads, mlp and vocabulary are cut along this axis"""
    expert: Axis = 1
    """the batch and a mixture's experts are cut along this axis"""
    topology: str | None = None
    """the TPU slice in JAX's names, e.g. v5e:4x4: `lpo plan` compiles for it; a run checks its size"""

    def __post_init__(self) -> None:
        check(
            0 not in (self.data, self.fsdp, self.tensor, self.expert),
            "an axis of 0 devices: give their number, or -1 for all that are left",
        )


@dataclass(frozen=True)
class DataConfig(Settings):
    """The shard set that `lpo-data build` wrote."""

    path: str
    """its directory"""
    tokenizer: str | None = None
    """tokenizer.json or its directory, checked against the shards; null: the one in model.path"""


@dataclass(frozen=True)
class PlanConfig(Settings):
    """What `lpo plan` assumes of shards that aren't built yet; where a stage's lie there, it reads their manifests."""

    row_tokens: Positive = 4096
    """tokens in a packed row, T"""
    scored_share: Annotated[float, Field(gt=0, le=1)] = 0.75
    """scored tokens of these, N / T"""
    pair_tokens: Positive = 700
    """a pair's mean length as a tree, shared parts once"""
    pairs: Positive | None = None
    """pairs in the train split, for steps and hours; null: unknown"""


@dataclass(frozen=True)
class ProfileConfig(Settings):
    """Steps of which XProf sees what the devices did."""

    start: Positive
    """the first of them, counted over all stages; not step 1, which compiles, but one behind it"""
    steps: Positive = 3
    """how many; a few say it all, and a trace of many is large"""


@dataclass(frozen=True)
class RunConfig(Settings):
    """A whole run: stages that follow one another on one model, e.g. sft, then lpo."""

    run_dir: NonEmpty
    """where the run lives: checkpoints, metrics, report; a directory or a bucket (gs://...)"""
    data: DataConfig
    """what it is trained on, but for stages with data of their own, and evaluated on"""
    model: ModelSource
    """what is trained"""
    stages: dict[str, StageConfig]
    """name -> stage, in this order"""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """how devices share the work"""
    plan: PlanConfig = field(default_factory=PlanConfig)
    """what `lpo plan` assumes of data that isn't there"""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """of weights, the order of rows and dropout"""
    eval_rows: Positive = 8
    """rows in one evaluation batch"""
    eval_every_steps: Count = 50
    """held-out metrics during training; 0: only before and after each stage"""
    log_every_steps: Positive = 1
    """lines of metrics.jsonl"""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """where the run is followed, besides metrics.jsonl; wandb and trackio are extras of the package"""
    checkpoint_every_steps: Positive = 100
    """besides the one at each stage's end"""
    keep_checkpoints: Positive = 3
    """so many of the newest stay, and besides them the best of those whose step was also evaluated"""
    best_metric: Literal["pair_accuracy", "margin", "changed_nll", "unchanged_nll"] = "pair_accuracy"
    """the held-out metric that says which checkpoint is the best"""
    max_skipped_steps: Positive = 5
    """a step whose loss or gradient isn't finite changes nothing; this many in a row stop the run"""
    report_pairs: Count = 6
    """held-out pairs drawn in report.html"""
    profile: ProfileConfig | None = None
    """a trace of some steps on process 0, for XProf, in run_dir/profile, e.g. {start: 10, steps: 3}; null: none"""

    def __post_init__(self) -> None:
        check(bool(self.stages), "stages: a run needs at least one stage, e.g. `sft` or `lpo`")
        for name, stage in self.stages.items():
            check(
                objectives.of(stage.objective).frozen != "base" or self.model.lora is not None,
                f"stages.{name}: objective {stage.objective.name} trains adapters and compares them with the model beneath: set model.lora",
            )
        check(len(set(self.track)) == len(self.track), "track: a tracker stands there twice")
        check("init" not in self.stages, 'stages: "init" is the name of the model before training; choose another')
        for name in self.stages:
            check(
                re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name) is not None and ".." not in name,
                f"stages: {name!r} names files: write letters, digits, _, - and . (64 at most), the first a letter or digit",
            )
        kept = dict[str, str]()  # directory -> the stage whose reference lies there
        for name, stage in self.stages.items():
            if where := getattr(stage.objective, "reference", None):
                where = os.path.normpath(where)
                check(
                    where not in kept,
                    f"stages.{name}.objective.reference: {where} is stage {kept.get(where)}'s; each stage begins with another model, "
                    "so give each a directory of its own",
                )
                kept[where] = name
        check("\0" not in self.run_dir, "run_dir: a path holds no NUL")

    def shard_sets(self, stage: str) -> dict[str, ShardSet]:
        """What a stage is trained on, by key: "data.path", or "stages.sft.data.0.path" and so on."""
        own = self.stages[stage].data
        if own is None:
            return {"data.path": ShardSet(self.data.path)}
        return {f"stages.{stage}.data.{index}.path": one for index, one in enumerate(own)}

    def shard_paths(self) -> dict[str, str]:
        """The directories of all shard sets that the run reads, each once, by the first key that names it."""
        keys = {self.data.path: "data.path"}
        for stage in self.stages:
            for key, one in self.shard_sets(stage).items():
                keys.setdefault(one.path, key)
        return {key: path for path, key in keys.items()}

    def stands_on(self) -> dict[str, str]:
        """The paths that a finished run is still read with, by key: the weights beneath its adapters, and its tokenizer."""
        model, data = self.model, self.data
        found = {"model.path": model.path, "model.adapter": model.adapter, "data.tokenizer": data.tokenizer}
        if model.path is None and data.tokenizer is None:
            found["data.path"] = f"{data.path}/tokenizer"
        return {key: path for key, path in found.items() if path is not None}
