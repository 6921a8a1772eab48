"""config.json to `ModelConfig` and back, by the records of `lpo_jax.model.families`."""

import re

from foundation.files import Json
from lpo_jax.config import ConfigError, ModelConfig, from_dict
from lpo_jax.model.families import FAMILIES, Family

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
_HF_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


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
    raw = {family.also[key]: raw[key] for key in family.also if key in raw} | raw
    for key, value in family.only.items():
        if raw.get(key, value) != value:
            raise ConfigError(f"config.json: {key}={raw[key]!r} is not supported for {name}, only {value!r}")
    values: Json = {ours: raw.get(theirs) for ours, theirs in family.keys.items()} | dict(family.fixed)
    values |= {ours: value for ours, value in family.defaults.items() if values[ours] is None}
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
