"""The schema of a run's config: frozen dataclasses, whose defaults stand here alone and whose texts explain each key.

A YAML file lists what differs from the defaults; `lpo config FILE` prints the whole of it with these explanations.
"""

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

ONCE_EVERYWHERE = {
    "mode": "clean", "beta": None, "gamma": None, "alpha": None, "empty_side": "detach", "norm_len": "code", "imitation": "sum",
    "off_mask": 1e-6, "label_smoothing": 0.0, "score_prompt": False, "kl": None,
}  # fmt: skip
"""Options that every objective once had, with their defaults. Files written then list all of them."""


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

LayerKind = Literal["full", "window", "no_rope"]

Axis = Annotated[int, Field(ge=-1, le=LARGEST)]


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _check_sets(sets: "tuple[ShardSet, ...]") -> None:
    paths, weights = [os.path.normpath(one.path) for one in sets], [one.weight for one in sets if one.weight is not None]
    _check(bool(paths), "data: name a shard set, e.g. [{path: data/pairs}], or null: the run's data")
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise ConfigError(f"data: {twice} stands there twice; to read it more often give it a larger weight")
    _check(len(weights) in (0, len(paths)), "data: either each set has a weight, or none")
    if weights and 0 in (parts := order.shares(weights)):
        raise ConfigError(
            f"data: {paths[parts.index(0)]} has less than one row in {order.CYCLE} by its weight; give it more, or take it out"
        )


@dataclass(frozen=True)
class RopeScaling(Settings):
    """How rotary frequencies are stretched beyond the length that a model was first trained on."""

    kind: Literal["linear", "llama3", "longrope", "yarn"]
    """linear: all frequencies alike; llama3, yarn: the slow ones only; longrope: each as `short_factors` say"""
    factor: PositiveNumber
    """by how much; longrope: the length that the model was made for / original_positions, beyond which it isn't computed"""
    low_freq_factor: PositiveNumber = 1.0
    """llama3: wavelengths above original_positions / low_freq_factor are stretched by the whole `factor`"""
    high_freq_factor: PositiveNumber = 4.0
    """llama3: wavelengths below original_positions / high_freq_factor are left alone; those in between are stretched in proportion"""
    original_positions: Positive = 8192
    """llama3, longrope, yarn: the length that the model was first trained on"""
    beta_fast: PositiveNumber = 32.0
    """yarn: dims that turn more often than this within original_positions are left alone"""
    beta_slow: PositiveNumber = 1.0
    """yarn: dims that turn less often than this are stretched by the whole `factor`; those in between in proportion to their index"""
    truncate: bool = True
    """yarn: the two bounds between dims are rounded, outwards"""
    attention_factor: PositiveNumber = 1.0
    """longrope, yarn: the rotated dims of queries and keys are multiplied by it"""
    short_factors: tuple[PositiveNumber, ...] = ()
    """longrope: by how much each pair of dims is stretched, up to original_positions"""
    long_factors: tuple[PositiveNumber, ...] = ()
    """longrope: the same for longer sequences: kept for export, not computed"""


@dataclass(frozen=True)
class ModelConfig(Settings):
    """The shape of a decoder. Families differ in these values only."""

    family: Literal[
        "codegen", "gemma3_text", "gpt_bigcode", "granite", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3", "smollm3", "starcoder2"
    ]
    """`model_type` of a Hugging Face config.json, see lpo_jax/model/families.py"""
    vocab_size: Positive
    """rows of the embedding table"""
    d_model: Positive
    """width of the residual stream"""
    n_layers: Annotated[int, Field(gt=0, le=10_000)]
    """blocks"""
    n_heads: Positive
    """query heads"""
    n_kv_heads: Positive
    """key and value heads"""
    head_dim: Positive
    """width of a head"""
    d_mlp: Positive
    """width inside an MLP"""
    max_positions: Positive
    """longest sequence the model was made for"""
    layers: tuple[LayerKind, ...] | None = None
    """each layer's kind; null: all alike. window: a token sees `window` positions; full: all of them; no_rope: all of them, and nothing is
    rotated"""
    norm: Literal["rms", "rms_plus_one", "layer"] = "rms"
    """layer: with a bias; rms_plus_one: times 1 + weight"""
    norm_eps: PositiveNumber = 1e-6
    """added to a norm's variance"""
    positions: Literal["rope", "learned"] = "rope"
    """rotary, or a table"""
    rope_theta: PositiveNumber = 10000.0
    """base of the rotary frequencies"""
    rope_dim: Positive | None = None
    """leading dims of a head that are rotated; null: all"""
    rope_interleaved: bool = False
    """rotate neighbouring dims (GPT-J), not the two halves (llama)"""
    rope_scaling: RopeScaling | None = None
    """how they are stretched; null: not at all"""
    window: Positive | None = None
    """a token sees this many positions, itself included; null: all"""
    window_rope_theta: PositiveNumber | None = None
    """rope_theta of the layers with a window, whose frequencies aren't stretched then; null: as in the others"""
    score_scale: PositiveNumber | None = None
    """attention scores are multiplied by it; null: 1 / sqrt(head_dim)"""
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    """of the MLP; gelu_tanh: gelu's usual approximation"""
    gated_mlp: bool = True
    """activate(x gate) * (x up), not activate(x up)"""
    parallel: bool = False
    """attention and MLP read one norm's output and are added to the residual together"""
    post_norms: bool = False
    """the outputs of attention and MLP are normalised too"""
    embed_scale: PositiveNumber = 1.0
    """embeddings are multiplied by it"""
    residual_scale: PositiveNumber = 1.0
    """what attention and MLP add to the residual is multiplied by it"""
    logit_divisor: PositiveNumber = 1.0
    """logits are divided by it"""
    qkv_bias: bool = False
    """of the query, key and value projections"""
    out_bias: bool = False
    """of the attention's output projection"""
    mlp_bias: bool = False
    """of the MLP's matrices"""
    head_bias: bool = False
    """of the output head"""
    qk_norm: bool = False
    """normalise every head's query and key"""
    tied_head: bool = False
    """the output head is the embedding table"""

    def __post_init__(self) -> None:
        _check(
            self.n_heads % self.n_kv_heads == 0,
            f"model shape: n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})",
        )
        rotated = self.head_dim if self.rope_dim is None else self.rope_dim
        _check(
            rotated % 2 == 0 and rotated <= self.head_dim,
            f"model shape: the rotated dims ({rotated}) must be even and at most head_dim ({self.head_dim})",
        )
        _check(
            self.layers is None or len(self.layers) == self.n_layers,
            f"model shape: layers has {len(self.layers or ())} kinds, n_layers is {self.n_layers}",
        )
        _check("window" not in self.kinds or self.window is not None, "model shape: layers: some have a window, but window is null")
        _check(self.positions == "rope" or "no_rope" not in self.kinds, "model shape: learned positions leave no layer without rope")
        _check(not (self.parallel and self.post_norms), "model shape: a parallel block has no post_norms")
        if (scaling := self.rope_scaling) is not None and scaling.kind == "yarn":
            _check(self.rope_theta > 1, f"model shape: rope_theta ({self.rope_theta}) must be above 1 for yarn")
        if scaling is not None and scaling.kind == "longrope":
            pairs, lengths = rotated // 2, [len(scaling.short_factors), len(scaling.long_factors)]
            _check(lengths == [pairs, pairs], f"model shape: short_factors and long_factors have {lengths} numbers, both must have {pairs}")
            _check(
                self.max_positions <= scaling.original_positions,
                f"model shape: max_positions ({self.max_positions}) must be at most original_positions ({scaling.original_positions}): "
                "longrope isn't computed beyond it",
            )

    @property
    def limit(self) -> str:
        """The longest sequence, for errors."""
        if self.rope_scaling is None or self.rope_scaling.kind != "longrope":
            return f"{self.max_positions} tokens"
        return f"{self.max_positions} tokens (original_max_position_embeddings; longrope isn't computed beyond)"

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The kinds of layers that there are, each once."""
        return tuple(dict.fromkeys(self.layers or ("full" if self.window is None else "window",)))


@dataclass(frozen=True)
class LoraConfig(Settings):
    """Low-rank adapters (Hu et al. 2021): W + alpha / rank * A B is trained through A and B; W stays as it is."""

    rank: Positive
    """columns of A"""
    alpha: PositiveNumber
    """the adapters' product is scaled by alpha / rank"""
    dropout: Decay = 0.0
    """of the adapters' inputs: of each token's and each module's on its own, as in PEFT"""
    targets: str = r"blocks\.(q|k|v|o|gate|up|down)|head"
    """regular expression, matched against whole parameter paths; a tied head is called tied_head: its adapter leaves the embeddings alone"""


@dataclass(frozen=True)
class ModelSource(Settings):
    """Where the model comes from, and how it is computed. Exactly one of `path` and `new` is set."""

    path: str | None = None
    """a directory with config.json and *.safetensors, or a hub id"""
    shape: str | None = None
    """a copy of path's config.json: `lpo plan` needs no more of a model; a run refuses weights that differ"""
    adapter: str | None = None
    """a PEFT directory, merged into the weights first, as the authors do between SFT and LPO"""
    new: ModelConfig | None = None
    """a randomly initialised model of this shape"""
    compute_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """matmuls; norms, softmax and losses are float32"""
    param_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """the weights that the optimizer updates"""
    remat: Remat = "dots"
    """what a layer keeps for the backward pass, which recomputes the rest. block: its input; attention: and attention's output; dots: and
    every other matrix product's, so that little is left to recompute (on CPUs it is faster than none); none: everything"""
    lora: LoraConfig | None = None
    """train adapters instead of the weights"""
    quantize: Literal["int8", "int4", "nf4"] | None = None
    """under adapters, how the layers' frozen matrices are held: int8 with a scale for each output, int4 or nf4 with one for 64 inputs; null: in
    param_dtype, as embeddings, head, norms and biases always are"""

    def __post_init__(self) -> None:
        _check(
            (self.path is None) != (self.new is None),
            "model: set exactly one of model.path (a Hugging Face directory) and model.new (a shape)",
        )
        _check(self.shape is None or self.new is None, "model.shape describes model.path; model.new is a shape itself")
        _check(self.quantize is None or self.lora is not None, "model.quantize is for a frozen base: set model.lora, or take it out")
        _check(
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
        _check((self.epochs is None) != (self.steps is None), "stage: set exactly one of epochs and steps")
        _check(
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
    topology: str | None = None
    """the TPU slice in JAX's names, e.g. v5e:4x4: `lpo plan` compiles for it; a run checks its size"""

    def __post_init__(self) -> None:
        _check(0 not in (self.data, self.fsdp, self.tensor), "an axis of 0 devices: give their number, or -1 for all that are left")


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

    def __post_init__(self) -> None:
        _check(bool(self.stages), "stages: a run needs at least one stage, e.g. `sft` or `lpo`")
        for name, stage in self.stages.items():
            _check(
                objectives.of(stage.objective).frozen != "base" or self.model.lora is not None,
                f"stages.{name}: objective {stage.objective.name} trains adapters and compares them with the model beneath: set model.lora",
            )
        _check("init" not in self.stages, 'stages: "init" is the name of the model before training; choose another')
        for name in self.stages:
            _check(
                re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name) is not None and ".." not in name,
                f"stages: {name!r} names files: write letters, digits, _, - and . (64 at most), the first a letter or digit",
            )
        kept = dict[str, str]()  # directory -> the stage whose reference lies there
        for name, stage in self.stages.items():
            if where := getattr(stage.objective, "reference", None):
                where = os.path.normpath(where)
                _check(
                    where not in kept,
                    f"stages.{name}.objective.reference: {where} is stage {kept.get(where)}'s; each stage begins with another model, "
                    "so give each a directory of its own",
                )
                kept[where] = name
        _check("\0" not in self.run_dir, "run_dir: a path holds no NUL")

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
