"""One run, one YAML: frozen dataclasses are the schema and the documentation.

`load(path, overrides)` reads a YAML file, applies ``key.sub=value`` overrides and returns a `RunConfig`. An unknown key or a
value of the wrong type is a `ConfigError` that names the key and the nearest valid one.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml


class ConfigError(ValueError):
    """A configuration that can't be run; the message names the key and the remedy."""


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the length that a model was first trained on."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0  # llama3: wavelengths above original_positions / low_freq_factor are stretched by `factor` ...
    high_freq_factor: float = 4.0  # ... below original_positions / high_freq_factor not at all, and in between in proportion
    original_positions: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder. Families differ in these values only."""

    family: str  # `model_type` of a Hugging Face config.json, see lpo_jax/model/families.py
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_mlp: int
    max_positions: int  # longest sequence the model was made for
    norm: Literal["rms", "layer"] = "rms"  # layer norms have a bias
    norm_eps: float = 1e-6
    positions: Literal["rope", "learned"] = "rope"
    rope_theta: float = 10000.0
    rope_dim: int | None = None  # leading dims of a head that are rotated; null: all
    rope_interleaved: bool = False  # rotate neighbouring dims (GPT-J), not the two halves (llama)
    rope_scaling: RopeScaling | None = None
    window: int | None = None  # a token sees this many positions, itself included; null: all
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    gated_mlp: bool = True
    parallel: bool = False  # attention and MLP read one norm's output and are added to the residual together
    qkv_bias: bool = False
    out_bias: bool = False  # of the attention's output projection
    mlp_bias: bool = False
    head_bias: bool = False
    qk_norm: bool = False  # normalise every head's query and key
    tied_head: bool = False  # the output head is the embedding table

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


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021): W + alpha / rank * A B is trained through A and B; W stays as it is."""

    rank: int
    alpha: float
    dropout: float = 0.0  # of the adapters' inputs, one mask for all tokens of a step
    targets: str = r"blocks\.(q|k|v|o|gate|up|down)|head"  # regular expression, matched against whole parameter paths

    def __post_init__(self) -> None:
        _check(self.rank > 0, f"lora.rank must be positive, not {self.rank}")
        _check(0 <= self.dropout < 1, f"lora.dropout must lie in [0, 1), not {self.dropout}")


@dataclass(frozen=True)
class ModelSource:
    """Where the model comes from, and how it is computed. Exactly one of `path` and `new` is set."""

    path: str | None = None  # a directory with config.json and *.safetensors, or a hub id
    shape: str | None = None  # a copy of path's config.json: `lpo plan` needs no more of a model; a run refuses weights that differ
    adapter: str | None = None  # a PEFT directory, merged into the weights first, as the authors do between SFT and LPO
    new: ModelConfig | None = None  # a randomly initialised model of this shape
    compute_dtype: Literal["float32", "bfloat16", "float64"] = "float32"  # matmuls; norms, softmax and losses are float32
    param_dtype: Literal["float32", "bfloat16", "float64"] = "float32"  # the weights that the optimizer updates
    # What a layer keeps for the backward pass, which recomputes the rest. block: its input; attention: and attention's output;
    # dots: and every other matrix product's, so that little is left to recompute (on CPUs it is faster than none); none: everything.
    remat: Literal["none", "dots", "attention", "block"] = "dots"
    lora: LoraConfig | None = None  # train adapters instead of the weights

    def __post_init__(self) -> None:
        _check(
            (self.path is None) != (self.new is None),
            "model: set exactly one of model.path (a Hugging Face directory) and model.new (a shape)",
        )
        _check(self.shape is None or self.new is None, "model.shape describes model.path; model.new is a shape itself")


@dataclass(frozen=True)
class KlConfig:
    """A Kullback-Leibler divergence between the trained model and a frozen one: the teacher of `kd`, the base model of `security`."""

    direction: Literal["reverse", "forward"]  # KL(trained || frozen), KL(frozen || trained)
    weight: float  # kd: (1 - weight) * LM + weight * KL; security: CE + weight * KL
    teacher: str | None = None  # kd: a Hugging Face directory, a hub id, or a directory that `lpo teacher` wrote

    def __post_init__(self) -> None:
        _check(self.weight >= 0, f"kl.weight must be 0 or more, not {self.weight}")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What a stage optimises. See `lpo_jax.objectives` for the formulas."""

    name: Literal["sft", "lpo", "simpo", "kd", "security"]
    mode: Literal["clean", "paper", "reference"] = "clean"  # lpo only
    beta: float | None = None  # scale of the preference term; required by lpo and simpo
    gamma: float | None = None  # absolute target margin (SimPO's ratio is gamma / beta); required by lpo and simpo
    alpha: float | None = None  # weight of the SFT term on unchanged tokens; required by lpo
    empty_side: Literal["detach", "skip"] = (
        "detach"  # clean: a side without changed tokens is replaced by the detached other, or the pair's preference term is skipped
    )
    norm_len: Literal["code", "answer"] = "code"  # paper: does |y| count the code, or reasoning and code?
    imitation: Literal["sum", "mean"] = "sum"  # paper: reduction of the SFT term
    off_mask: float = 1e-6  # reference: weight of unchanged tokens, the authors' 1 - loss_mask_val
    label_smoothing: float = 0.0
    score_prompt: bool = False  # sft, kd, security: score the prompt's tokens too, as the authors' SFT does
    kl: KlConfig | None = None  # required by kd and security

    def __post_init__(self) -> None:
        needed = {
            "sft": (),
            "simpo": ("beta", "gamma"),
            "lpo": ("beta", "gamma", "alpha"),
            "kd": ("kl",),
            "security": ("kl",),
        }[self.name]
        missing = [key for key in needed if getattr(self, key) is None]
        _check(not missing, f"objective {self.name}: set {', '.join(missing)} (no default holds for every mode)")
        if self.name == "kd" and self.kl is not None:
            _check(self.kl.teacher is not None, "objective kd: set kl.teacher to a model's directory, or to one that `lpo teacher` wrote")
            _check(self.kl.weight <= 1, f"objective kd: kl.weight is the teacher's share of the loss, in [0, 1], not {self.kl.weight}")
        _check(0 <= self.off_mask <= 1, f"objective.off_mask must lie in [0, 1], not {self.off_mask}")
        _check(0 <= self.label_smoothing < 0.5, f"objective.label_smoothing must lie in [0, 0.5), not {self.label_smoothing}")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up, cosine decay and clipping by global norm."""

    lr: float
    warmup_ratio: float = 0.05  # share of the stage's steps
    final_lr_ratio: float = 0.0  # the cosine ends at this share of `lr`
    weight_decay: float = 0.0  # on matrices only
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        _check(self.lr > 0, f"optim.lr must be positive, not {self.lr}")
        _check(0 <= self.warmup_ratio <= 1, f"optim.warmup_ratio must lie in [0, 1], not {self.warmup_ratio}")
        _check(self.clip_norm > 0, f"optim.clip_norm must be positive, not {self.clip_norm}")


@dataclass(frozen=True)
class StageConfig:
    """One stage of a run: an objective, an optimizer and a length. Set one of `epochs` and `steps`."""

    objective: ObjectiveConfig
    optim: OptimConfig
    batch_rows: int  # packed rows in one optimizer step, over all devices
    accumulate: int = 1  # microbatches that a step is cut into
    epochs: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        _check((self.epochs is None) != (self.steps is None), "stage: set exactly one of epochs and steps")
        _check(self.batch_rows > 0 and self.accumulate > 0, "stage: batch_rows and accumulate must be positive")
        _check(
            self.batch_rows % self.accumulate == 0,
            f"stage: batch_rows ({self.batch_rows}) must be a multiple of accumulate ({self.accumulate})",
        )


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; one of them may be -1, "all that are left"."""

    data: int = -1  # replicas: whole copies of the model
    fsdp: int = 1  # the batch and every parameter are cut along this axis
    tensor: int = 1  # heads, mlp and vocabulary are cut along this axis
    topology: str | None = None  # the TPU slice in JAX's names, e.g. v5e:4x4: `lpo plan` compiles for it; a run checks its size


@dataclass(frozen=True)
class DataConfig:
    """The shard set that `lpo-data build` wrote."""

    path: str
    tokenizer: str | None = None  # tokenizer.json or its directory, checked against the shards; default: the one in model.path


@dataclass(frozen=True)
class PlanConfig:
    """What `lpo plan` assumes of shards that aren't built yet; where data.path holds some, it reads their manifest."""

    row_tokens: int = 4096  # T
    scored_share: float = 0.75  # N / T
    pair_tokens: int = 700  # a pair's mean length as a tree, shared parts once

    def __post_init__(self) -> None:
        _check(self.row_tokens > 0 and self.pair_tokens > 0, "plan.row_tokens and plan.pair_tokens must be positive")
        _check(0 < self.scored_share <= 1, f"plan.scored_share must lie in (0, 1], not {self.scored_share}")


@dataclass(frozen=True)
class RunConfig:
    """A whole run: stages that follow one another on one model, e.g. sft, then lpo."""

    run_dir: str
    data: DataConfig
    model: ModelSource
    stages: dict[str, StageConfig]
    mesh: MeshConfig = field(default_factory=MeshConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    seed: int = 0
    eval_rows: int = 8  # rows in one evaluation batch
    eval_every_steps: int = 0  # held-out metrics during training; 0: only before and after each stage
    log_every_steps: int = 1
    checkpoint_every_steps: int = 100
    keep_checkpoints: int = 2  # the newest; besides them stays the best of those whose step was also evaluated ...
    best_metric: Literal["pair_accuracy", "margin", "changed_nll", "unchanged_nll"] = "pair_accuracy"  # ... by this held-out metric
    max_skipped_steps: int = 5  # a step whose loss or gradient isn't finite changes nothing; this many in a row stop the run
    report_pairs: int = 6  # held-out pairs drawn in report.html

    def __post_init__(self) -> None:
        _check(bool(self.stages), "stages: a run needs at least one stage, e.g. `sft` or `lpo`")
        for name, stage in self.stages.items():
            _check(
                stage.objective.name != "security" or self.model.lora is not None,
                f"stages.{name}: objective security trains adapters and compares them with the model beneath: set model.lora",
            )
        _check("init" not in self.stages, 'stages: "init" is the name of the model before training; choose another')
        _check(self.keep_checkpoints > 0, f"keep_checkpoints must be positive, not {self.keep_checkpoints}")
        _check(self.max_skipped_steps > 0, f"max_skipped_steps must be positive, not {self.max_skipped_steps}")


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML and apply ``key.sub=value`` overrides.

    Raises:
      ConfigError: the file is missing or no mapping, a key is unknown, or a value is out of range.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config; the shipped ones are in configs/") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    _check(isinstance(raw, dict), f"{path}: expected a mapping of settings")
    for override in overrides:
        _apply(raw, override)
    return from_dict(RunConfig, raw, "")


def to_dict(config: Any) -> dict[str, Any]:
    """The plain nested dict of a config, as it stands in YAML."""
    return dataclasses.asdict(config)


def from_dict(cls: type, raw: Any, where: str = "") -> Any:
    """Build dataclass `cls` from a nested dict; `where` is the dotted key it stands at."""
    _check(isinstance(raw, dict), f"{where or 'config'}: expected a mapping, not {raw!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in raw:
        if key not in fields:
            raise ConfigError(_unknown(_join(where, key), key, list(fields)))
    for name, spec in fields.items():
        required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        _check(not required or name in raw, f"missing key {_join(where, name)}")
    values = {key: _convert(hints[key], value, _join(where, key)) for key, value in raw.items()}
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(_unknown(f"{where}={value}", str(value), [str(a) for a in args], "value"))
        return value
    if origin is dict:
        _check(isinstance(value, dict), f"{where}: expected a mapping, not {value!r}")
        return {key: _convert(args[1], item, _join(where, key)) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if hint is float and not isinstance(value, bool):
        try:  # YAML 1.1 reads 1e-5 as a string
            return float(value)
        except (TypeError, ValueError):
            pass
    elif type(value) is hint:
        return value
    raise ConfigError(f"{where}: expected {hint.__name__}, not {value!r}")


def _apply(raw: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    _check(bool(equals), f"override {override!r}: write key.sub=value")
    *parents, last = dotted.split(".")
    node = raw
    for depth, key in enumerate(parents):
        child = node.setdefault(key, {})
        if child is None:
            child = node[key] = {}
        _check(isinstance(child, dict), f"override {override!r}: {'.'.join(parents[: depth + 1])} has no sub-keys")
        node = child
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {dotted}: {text!r} isn't valid YAML: {error}") from None


def _unknown(where: str, key: str, valid: list[str], what: str = "key") -> str:
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"valid {what}s: {', '.join(sorted(valid))}"
    return f"unknown {what} {where}: {hint}"


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
