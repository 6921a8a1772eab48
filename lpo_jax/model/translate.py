"""config.json to `ModelConfig` and back, by the records of `lpo_jax.model.families`."""

import math
import operator
import re
from collections.abc import Callable
from typing import Any

from foundation.files import Json
from lpo_jax.config import ConfigError, ModelConfig, from_dict
from lpo_jax.model.families import FAMILIES, Family, Layers

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
_HF_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}

CONVERTED: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "query_pre_attn_scalar": (lambda scalar: operator.index(scalar) ** -0.5, lambda scale: round(scale**-2))
}
"""The config.json keys whose values aren't ours: read, written."""

_TEXT_MODELS = {
    "gemma3": "it holds a vision tower too. Save its text model with transformers: whole = Gemma3ForConditionalGeneration.from_pretrained(DIR); "
    "text = Gemma3ForCausalLM(whole.config.text_config); text.model, text.lm_head = whole.model.language_model, whole.lm_head; "
    "text.save_pretrained(NEW_DIR)"
}
"""What to do with a model whose text model we have: `from_pretrained` of the text model's class would find no weights there."""

_ROPE_NAMES = {"original_positions": "original_max_position_embeddings", "short_factors": "short_factor", "long_factors": "long_factor"}
_NULLABLE = ("n_kv_heads", "head_dim", "d_mlp", "window", "rope_dim")


def config_from_hf(raw: Json) -> ModelConfig:
    """Translate a parsed config.json (transformers 4 or 5).

    Raises:
      ConfigError: a family we don't have, an option we don't compute, or a missing key; named.
    """
    name = raw.get("model_type") if isinstance(raw, dict) else None
    if not isinstance(name, str) or name not in FAMILIES:
        remedy = _TEXT_MODELS.get(str(name), f"supported: {', '.join(sorted(FAMILIES))}")
        raise ConfigError(f"config.json: model_type {name!r} is not supported; {remedy}")
    family = FAMILIES[name]
    try:
        return from_dict(ModelConfig, _translated(raw, name, family))
    except ConfigError as error:
        said = str(error)
        names = {ours: key for key, fields in family.flags.items() for ours in fields} | _ROPE_NAMES | {"tied_head": "tie_word_embeddings"}
        names |= {"layers": family.layers.key} if family.layers else {}
        for ours, theirs in {**family.keys, **names}.items():
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
    if "window" not in family.keys and (others := set(raw.get("layer_types") or ()) - {"full_attention"}):
        raise ConfigError(f"config.json: layer_types: {others.pop()!r} is not supported for {name}, only 'full_attention'")
    values: Json = {ours: raw.get(theirs) for ours, theirs in family.keys.items()} | dict(family.fixed)
    if not isinstance(values["activation"], str) or values["activation"] not in _ACTIVATIONS:
        raise ConfigError(f"config.json: {family.keys['activation']} {values['activation']!r} is not supported for {name}")
    values["activation"] = _ACTIVATIONS[values["activation"]]
    for key, fields in family.flags.items():
        values |= dict.fromkeys(fields, raw.get(key, False))
    values |= {ours: family.defaults[ours] for ours, value in values.items() if value is None and ours in family.defaults}
    missing = [family.keys[ours] for ours, value in values.items() if value is None and ours not in _NULLABLE]
    if missing:
        raise ConfigError(f"config.json: missing {', '.join(missing)}")
    values |= {ours: CONVERTED[key][0](values[ours]) for ours, key in family.keys.items() if key in CONVERTED}
    defaults = {"n_kv_heads": values["n_heads"], "head_dim": values["d_model"] // max(values["n_heads"], 1), "d_mlp": 4 * values["d_model"]}
    values |= {ours: default for ours, default in defaults.items() if values.get(ours) is None}
    if family.scaled_embed:
        values["embed_scale"] = math.sqrt(values["d_model"])
    if family.layers is not None:
        values["layers"] = _layers_from_hf(raw, family.layers, values["n_layers"])
    if values.get("positions") != "learned":
        values |= _rope_from_hf(raw, values, family)
    return {"family": name, "tied_head": raw.get("tie_word_embeddings", family.defaults.get("tied_head", False))} | values


def _layers_from_hf(raw: Json, layers: Layers, n_layers: int) -> list[str]:
    words = raw.get(layers.key)
    if words is None:
        usual, special = layers.words.values()
        every = layers.every if raw.get(layers.interval) is None else raw[layers.interval]
        return [usual if layer % every else special for layer in range(1, n_layers + 1)[:10_000]]
    if unknown := [word for word in words if word not in layers.words]:
        raise ConfigError(f"config.json: {layers.key}: {unknown[0]!r} is not supported; supported: {', '.join(map(repr, layers.words))}")
    return [layers.words[word] for word in words[:n_layers]]


def _rope_from_hf(raw: Json, values: Json, family: Family) -> Json:
    found = [raw.get(key) for key in ("rope_parameters", "rope_scaling")]
    rope: Any = found[0] or found[1] or {}
    own: Json = {}  # what layers with a window have of their own
    if isinstance(rope, dict) and "full_attention" in rope:
        rope, own = rope["full_attention"] or {}, rope.get("sliding_attention") or {}
    if not all(isinstance(value, dict | None) for value in (*found, rope, own)):
        raise ConfigError("config.json: rope_parameters and rope_scaling must be objects or null")
    made: Json = {"rope_theta": _theta(rope.get("rope_theta"), raw.get("rope_theta"), family.defaults.get("rope_theta", 10000.0))}
    if (theta := family.defaults.get("window_rope_theta")) is not None:
        made["window_rope_theta"] = _theta(own.get("rope_theta"), raw.get("rope_local_base_freq"), theta)
        if own.get("rope_type", "default") != "default":
            raise ConfigError(f"config.json: rope type {own['rope_type']!r} is not supported for sliding_attention, only 'default'")
    share = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if share is not None and share != 1.0:
        made["rope_dim"] = int(values["head_dim"] * share)
    kind = rope.get("rope_type", rope.get("type", "default")) or "default"
    if kind in ("su", "yarn") and "short_factor" in rope:  # what the first Phi-3 called it
        kind = "longrope"
    if kind == "default":
        return made
    longest = values["max_positions"]
    given = raw.get("original_max_position_embeddings"), rope.get("original_max_position_embeddings"), longest
    original = next(length for length in given if length is not None)
    if kind == "linear":
        scaling: Json = {"factor": float(rope["factor"])}
    elif kind == "llama3":
        scaling = {"original_positions": original} | {key: float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor")}
    elif kind == "yarn":
        factor = longest / original if rope["factor"] is None else float(rope["factor"])
        scaling = {"factor": factor, "original_positions": original, "truncate": rope.get("truncate", True)}
        scaling |= {"beta_fast": float(rope.get("beta_fast") or 32), "beta_slow": float(rope.get("beta_slow") or 1)}
        scaling["attention_factor"] = _attention_factor(kind, rope, factor, original)
    elif kind == "longrope":
        made["max_positions"] = min(longest, original)  # beyond it the long factors would count
        factor = longest / original
        scaling = {"factor": factor, "original_positions": original}
        scaling |= {"short_factors": rope["short_factor"], "long_factors": rope["long_factor"]}
        scaling["attention_factor"] = _attention_factor(kind, rope, factor, original)
    else:
        raise ConfigError(f"config.json: rope type {kind!r} is not supported; supported: default, linear, llama3, longrope, yarn")
    return made | {"rope_scaling": {"kind": kind} | scaling}


def _theta(*given: float | None) -> float:
    """The first that is one."""
    return float(next(theta for theta in given if theta is not None))


def _attention_factor(kind: str, rope: Json, factor: float, original: int) -> float:
    """What rotated dims are multiplied by, as transformers derives it where rope parameters don't say."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if kind == "longrope":
        factor = rope.get("factor") or factor
        return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0

    def grown(by: float) -> float:
        return 0.1 * by * math.log(factor) + 1 if factor > 1 else 1.0

    mscale, mscale_all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    return grown(mscale) / grown(mscale_all_dim) if mscale and mscale_all_dim else grown(1)


def config_to_hf(config: ModelConfig) -> Json:
    """The config.json of a model."""
    family = FAMILIES[config.family]
    raw: Json = {"architectures": [family.architecture], "model_type": config.family, "tie_word_embeddings": config.tied_head}
    raw["pad_token_id"] = None  # a family's own may lie beyond the vocabulary
    raw |= {theirs: getattr(config, ours) for ours, theirs in family.keys.items()}
    raw |= {key: write(raw[key]) for key, (_, write) in CONVERTED.items() if key in raw}
    raw[family.keys["activation"]] = _HF_ACTIVATIONS[config.activation]
    raw |= {key: getattr(config, fields[0]) for key, fields in family.flags.items()}
    raw |= family.only
    if family.layers is not None:
        words = {kind: word for word, kind in family.layers.words.items()}
        raw[family.layers.key] = [words[kind] for kind in config.layers or config.kinds * config.n_layers]
    if config.positions == "rope":
        raw |= _rope_to_hf(config)
    return raw


def _rope_to_hf(config: ModelConfig) -> Json:
    raw: Json = {"rope_theta": config.rope_theta}  # for transformers 4; version 5 reads rope_parameters
    rope: Json = {"rope_type": "default"}
    if (s := config.rope_scaling) is not None:
        rope = {"rope_type": s.kind} if s.kind == "longrope" else {"rope_type": s.kind, "factor": s.factor}
        if s.kind == "llama3":
            rope |= {"low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor}
        if s.kind == "yarn":
            rope |= {"beta_fast": s.beta_fast, "beta_slow": s.beta_slow, "truncate": s.truncate}
        if s.kind == "longrope":
            rope |= {"short_factor": list(s.short_factors), "long_factor": list(s.long_factors)}
            raw["original_max_position_embeddings"] = s.original_positions
            raw["max_position_embeddings"] = round(s.factor * s.original_positions)
        elif s.kind != "linear":
            rope["original_max_position_embeddings"] = s.original_positions
        if s.kind in ("yarn", "longrope") and s.attention_factor != _attention_factor(s.kind, {}, s.factor, s.original_positions):
            rope["attention_factor"] = s.attention_factor
        raw["rope_scaling"] = dict(rope)
        if s.kind == "longrope":  # Phi-3 in transformers 4 knows it by this key
            raw["rope_scaling"]["type"] = raw["rope_scaling"].pop("rope_type")
    rope["rope_theta"] = config.rope_theta
    if config.rope_dim is not None and config.family != "codegen":
        raw["partial_rotary_factor"] = rope["partial_rotary_factor"] = config.rope_dim / config.head_dim
    if config.window_rope_theta is not None:
        raw["rope_local_base_freq"] = config.window_rope_theta
        own = {"rope_type": "default", "rope_theta": config.window_rope_theta}
        rope = {"full_attention": rope, "sliding_attention": own}
    raw["rope_parameters"] = rope
    return raw
