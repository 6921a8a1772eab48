"""The model families, as data: how a config.json translates to `ModelConfig`, and what a model's tensors are called.

A family is one `Family` record. Most tensors hold one parameter; a fused one (qkv) holds several.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from foundation.files import Json
from lpo_jax.config import ConfigError, ModelConfig, from_dict


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint."""

    name: str  # Hugging Face's; where each layer has one, {layer} stands for its number
    paths: tuple[str, ...]  # our parameters in it, one after another along its outputs
    is_matrix: bool = False  # it is stored as [outputs, inputs]; ours are [inputs ..., outputs ...]
    partitions: int = 1  # the outputs are cut into so many parts, and each part holds its share of every path

    @property
    def stacked(self) -> bool:
        """Whether each layer has one."""
        return "{layer}" in self.name

    def names(self, layers: int) -> list[str]:
        """What it is called: in each of the layers, if it is stacked."""
        return [self.name.format(layer=layer) for layer in range(layers if self.stacked else 1)]

    def fuse(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The paths' arrays [..., outputs] as one."""
        if len(parts) == 1:
            return parts[0]
        grouped = [part.reshape(*part.shape[:-1], self.partitions, -1) for part in parts]
        return np.concatenate(grouped, axis=-1).reshape(*parts[0].shape[:-1], -1)

    def cut(self, fused: np.ndarray, outputs: Sequence[int]) -> list[np.ndarray]:
        """The inverse of `fuse`; `outputs` says how many outputs each path has."""
        if len(outputs) == 1:
            return [fused]
        grouped = fused.reshape(*fused.shape[:-1], self.partitions, -1)
        parts = np.split(grouped, np.cumsum(outputs)[:-1] // self.partitions, axis=-1)
        return [part.reshape(*fused.shape[:-1], -1) for part in parts]


@dataclass(frozen=True)
class Family:
    """What sets a family apart."""

    architecture: str
    keys: Mapping[str, str]  # ModelConfig field -> config.json key
    tensors: tuple[Tensor, ...]
    fixed: Json = field(default_factory=dict)  # ModelConfig fields that every model of the family has
    flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # config.json boolean -> ModelConfig fields
    only: Json = field(default_factory=dict)  # config.json options that are computed for this value alone
    tied_head: bool = False  # where config.json doesn't say


_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
_HF_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


def _linear(name: str, *paths: str, partitions: int = 1) -> tuple[Tensor, ...]:
    biases = tuple(path + "_bias" for path in paths)
    return Tensor(name + ".weight", paths, True, partitions), Tensor(name + ".bias", biases, False, partitions)


def _norm(name: str, path: str) -> tuple[Tensor, ...]:
    return Tensor(name + ".weight", (path,)), Tensor(name + ".bias", (path + "_bias",))


def _model(
    blocks: Mapping[str, str], embed: str = "model.embed_tokens", layer: str = "model.layers", final_norm: str = "model.norm"
) -> tuple[Tensor, ...]:
    """A family's tensors from the names of its modules. `blocks` maps a parameter of ours to a module of a layer."""
    tensors = [Tensor(embed + ".weight", ("embed",)), *_norm(final_norm, "final_norm"), *_linear("lm_head", "head")]
    for path, module in blocks.items():
        make = _norm if path.endswith("norm") else _linear
        tensors += make(f"{layer}.{{layer}}.{module}", "blocks." + path)
    return tuple(tensors)


_gpt_model = partial(_model, embed="transformer.wte", layer="transformer.h", final_norm="transformer.ln_f")

_ATTENTION = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj"}
_NORMS = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_LLAMA_BLOCKS = _ATTENTION | _NORMS | {"o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
_LLAMA_TENSORS = _model(_LLAMA_BLOCKS)
_QWEN3_TENSORS = _model(_LLAMA_BLOCKS | {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"})
_STARCODER2_TENSORS = _model(_ATTENTION | _NORMS | {"o": "self_attn.o_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"})
_PHI_BLOCKS = _ATTENTION | {"attn_norm": "input_layernorm", "o": "self_attn.dense", "up": "mlp.fc1", "down": "mlp.fc2"}
_PHI_TENSORS = _model(_PHI_BLOCKS, final_norm="model.final_layernorm")
_BIGCODE_TENSORS = (
    *_gpt_model({"attn_norm": "ln_1", "mlp_norm": "ln_2", "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}),
    Tensor("transformer.wpe.weight", ("positions",)),
    *_linear("transformer.h.{layer}.attn.c_attn", "blocks.q", "blocks.k", "blocks.v"),
)
_CODEGEN_TENSORS = (
    *_gpt_model({"attn_norm": "ln_1", "o": "attn.out_proj", "up": "mlp.fc_in", "down": "mlp.fc_out"}),
    # Laid out for four tensor-parallel cores, each with its share of queries, values and keys, in that order.
    *_linear("transformer.h.{layer}.attn.qkv_proj", "blocks.q", "blocks.v", "blocks.k", partitions=4),
)

_OURS = ("vocab_size", "d_model", "n_layers", "n_heads", "d_mlp", "max_positions", "activation")
_NAMES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "hidden_act",
)
_GPT_NAMES = ("vocab_size", "n_embd", "n_layer", "n_head", "n_inner", "n_positions", "activation_function")
_SIZES = dict(zip(_OURS, _NAMES, strict=True))
_GPT_KEYS = dict(zip(_OURS, _GPT_NAMES, strict=True)) | {"norm_eps": "layer_norm_epsilon"}
_LLAMA_KEYS = _SIZES | {"n_kv_heads": "num_key_value_heads", "head_dim": "head_dim", "norm_eps": "rms_norm_eps"}
_LAYER_NORM = {"norm": "layer", "gated_mlp": False}
_ATTENTION_BIAS = {"attention_bias": ("qkv_bias", "out_bias")}
_NO_WINDOW = {"use_sliding_window": False}

FAMILIES = {
    "llama": Family("LlamaForCausalLM", _LLAMA_KEYS, _LLAMA_TENSORS, flags=_ATTENTION_BIAS | {"mlp_bias": ("mlp_bias",)}),
    "mistral": Family("MistralForCausalLM", _LLAMA_KEYS | {"window": "sliding_window"}, _LLAMA_TENSORS),
    "qwen2": Family("Qwen2ForCausalLM", _LLAMA_KEYS, _LLAMA_TENSORS, fixed={"qkv_bias": True}, only=_NO_WINDOW),
    "qwen3": Family("Qwen3ForCausalLM", _LLAMA_KEYS, _QWEN3_TENSORS, fixed={"qk_norm": True}, flags=_ATTENTION_BIAS, only=_NO_WINDOW),
    "starcoder2": Family(
        "Starcoder2ForCausalLM",
        _SIZES | {"n_kv_heads": "num_key_value_heads", "norm_eps": "norm_epsilon", "window": "sliding_window"},
        _STARCODER2_TENSORS,
        fixed=_LAYER_NORM,
        flags={"use_bias": ("qkv_bias", "out_bias", "mlp_bias")},
        only={"mlp_type": "default"},
        tied_head=True,
    ),
    "gpt_bigcode": Family(
        "GPTBigCodeForCausalLM",
        _GPT_KEYS,
        _BIGCODE_TENSORS,
        fixed=_LAYER_NORM | {"n_kv_heads": 1, "positions": "learned", "qkv_bias": True, "out_bias": True, "mlp_bias": True},
        only={"multi_query": True, "scale_attn_weights": True, "add_cross_attention": False},
        tied_head=True,
    ),
    "codegen": Family(
        "CodeGenForCausalLM",
        _GPT_KEYS | {"rope_dim": "rotary_dim"},
        _CODEGEN_TENSORS,
        fixed=_LAYER_NORM | {"rope_interleaved": True, "parallel": True, "mlp_bias": True, "head_bias": True},
    ),
    "phi": Family(
        "PhiForCausalLM",
        _SIZES | {"n_kv_heads": "num_key_value_heads", "norm_eps": "layer_norm_eps"},
        _PHI_TENSORS,
        fixed=_LAYER_NORM | {"parallel": True, "qkv_bias": True, "out_bias": True, "mlp_bias": True, "head_bias": True},
        only={"qk_layernorm": False},
    ),
}


def config_from_hf(raw: Json) -> ModelConfig:
    """Translate a parsed config.json (transformers 4 or 5).

    Raises:
      ConfigError: a family we don't have, an option we don't compute, or a missing key; named.
    """
    name = raw.get("model_type") if isinstance(raw, dict) else None
    if not isinstance(name, str) or name not in FAMILIES:
        raise ConfigError(f"config.json: model_type {name!r} is not supported; supported: {', '.join(sorted(FAMILIES))}")
    family = FAMILIES[name]
    try:
        return from_dict(ModelConfig, _translated(raw, name, family))
    except ConfigError as error:
        said = str(error)
        flags = {field: key for key, fields in family.flags.items() for field in fields}
        for ours, theirs in {**family.keys, **flags, "tied_head": "tie_word_embeddings"}.items():
            said = re.sub(rf"\b{ours}\b", theirs, said)
        raise ConfigError(f"config.json: {said.removeprefix('config.json: ')}") from None
    except (TypeError, ValueError, KeyError, ZeroDivisionError, OverflowError) as error:
        raise ConfigError(
            f"config.json: a value is of the wrong kind ({type(error).__name__}: {error}); copy or download it again"
        ) from None


def _translated(raw: Json, name: str, family: Family) -> Json:
    """A config.json's values under our names, unchecked."""
    for key, value in family.only.items():
        if raw.get(key, value) != value:
            raise ConfigError(f"config.json: {key}={raw[key]!r} is not supported for {name}, only {value!r}")
    values: Json = {ours: raw.get(theirs) for ours, theirs in family.keys.items()} | dict(family.fixed)
    if not isinstance(values["activation"], str) or values["activation"] not in _ACTIVATIONS:
        raise ConfigError(f"config.json: {family.keys['activation']} {values['activation']!r} is not supported for {name}")
    values["activation"] = _ACTIVATIONS[values["activation"]]
    for key, fields in family.flags.items():
        values |= dict.fromkeys(fields, raw.get(key, False))
    optional = {"n_kv_heads", "head_dim", "d_mlp", "window", "rope_dim"}
    missing = [family.keys[ours] for ours, value in values.items() if value is None and ours not in optional]
    if missing:
        raise ConfigError(f"config.json: missing {', '.join(missing)}")
    given = {key: value for key, value in values.items() if value is not None}
    defaults = {"n_kv_heads": values["n_heads"], "head_dim": values["d_model"] // max(values["n_heads"], 1), "d_mlp": 4 * values["d_model"]}
    values |= {key: given.get(key, default) for key, default in defaults.items()}
    if values.get("positions") != "learned":
        values |= _rope_from_hf(raw, values["head_dim"])
    return {"family": name, "tied_head": raw.get("tie_word_embeddings", family.tied_head)} | values


def _rope_from_hf(raw: Json, head_dim: int) -> Json:
    found = [raw.get(key) for key in ("rope_parameters", "rope_scaling")]
    if not all(isinstance(value, dict | None) for value in found):
        raise ConfigError("config.json: rope_parameters and rope_scaling must be objects or null")
    rope: Json = found[0] or found[1] or {}
    kind = rope.get("rope_type", rope.get("type", "default")) or "default"
    values: Json = {"rope_theta": float(next((v for v in (rope.get("rope_theta"), raw.get("rope_theta")) if v is not None), 10000.0))}
    if kind == "linear":
        values["rope_scaling"] = {"kind": "linear", "factor": float(rope["factor"])}
    elif kind == "llama3":
        original = rope["original_max_position_embeddings"]
        factors = {key: float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor")}
        values["rope_scaling"] = {"kind": "llama3", "original_positions": original} | factors
    elif kind != "default":
        raise ConfigError(f"config.json: rope type {kind!r} is not supported; supported: default, linear, llama3")
    share = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if share is not None and share != 1.0:
        values["rope_dim"] = int(head_dim * share)
    return values


def config_to_hf(config: ModelConfig) -> Json:
    """The config.json of a model."""
    family = FAMILIES[config.family]
    raw: Json = {"architectures": [family.architecture], "model_type": config.family, "tie_word_embeddings": config.tied_head}
    raw |= {theirs: getattr(config, ours) for ours, theirs in family.keys.items()}
    raw[family.keys["activation"]] = _HF_ACTIVATIONS[config.activation]
    raw |= {key: getattr(config, fields[0]) for key, fields in family.flags.items()}
    raw |= family.only
    if config.positions == "rope":
        raw |= _rope_to_hf(config)
    return raw


def _rope_to_hf(config: ModelConfig) -> Json:
    raw: Json = {"rope_theta": config.rope_theta}  # for transformers 4; version 5 reads rope_parameters
    rope: Json = {"rope_type": "default"}
    if (s := config.rope_scaling) is not None:
        rope = raw["rope_scaling"] = {"rope_type": s.kind, "factor": s.factor}
        if s.kind == "llama3":
            rope |= {"low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor}
            rope |= {"original_max_position_embeddings": s.original_positions}
    raw["rope_parameters"] = rope | {"rope_theta": config.rope_theta}
    if config.rope_dim is not None and config.family != "codegen":
        raw["partial_rotary_factor"] = raw["rope_parameters"]["partial_rotary_factor"] = config.rope_dim / config.head_dim
    return raw
