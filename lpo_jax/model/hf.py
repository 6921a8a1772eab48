"""To and from Hugging Face: `config.json` to `ModelConfig`, safetensors to parameters, and back.

A family is two pieces of data: how its config translates, and what its weights are called (`_LLAMA_WEIGHTS`).
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from lpo_jax.config import ConfigError, ModelConfig
from lpo_jax.model.decoder import Model, Params

MAX_FILE_BYTES = 5 * 10**9

_LAYER = "model.layers.{layer}."
_LLAMA_WEIGHTS: dict[str, tuple[str, int]] = {
    # our path: (Hugging Face's name, leading dims of ours that are inputs; 0: stored as it is, else transposed to [out, in])
    "embed": ("model.embed_tokens.weight", 0),
    "blocks.attn_norm": (_LAYER + "input_layernorm.weight", 0),
    "blocks.q": (_LAYER + "self_attn.q_proj.weight", 1),
    "blocks.k": (_LAYER + "self_attn.k_proj.weight", 1),
    "blocks.v": (_LAYER + "self_attn.v_proj.weight", 1),
    "blocks.o": (_LAYER + "self_attn.o_proj.weight", 2),
    "blocks.q_bias": (_LAYER + "self_attn.q_proj.bias", 0),
    "blocks.k_bias": (_LAYER + "self_attn.k_proj.bias", 0),
    "blocks.v_bias": (_LAYER + "self_attn.v_proj.bias", 0),
    "blocks.mlp_norm": (_LAYER + "post_attention_layernorm.weight", 0),
    "blocks.gate": (_LAYER + "mlp.gate_proj.weight", 1),
    "blocks.up": (_LAYER + "mlp.up_proj.weight", 1),
    "blocks.down": (_LAYER + "mlp.down_proj.weight", 1),
    "final_norm": ("model.norm.weight", 0),
    "head": ("lm_head.weight", 1),
}
_WEIGHTS = {"llama": _LLAMA_WEIGHTS, "qwen2": _LLAMA_WEIGHTS}
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}


def read_config(directory: str | Path) -> ModelConfig:
    """The shape of the model in a Hugging Face directory.

    Raises:
      ConfigError: no config.json, a family we don't have, or an option we don't compute; named.
    """
    file = Path(directory) / "config.json"
    if not file.is_file():
        raise ConfigError(f"model.path: {file} doesn't exist; give a directory with config.json and *.safetensors")
    return config_from_hf(json.loads(file.read_text()))


def config_from_hf(raw: Mapping[str, Any]) -> ModelConfig:
    """Translate a parsed config.json (transformers 4 or 5)."""
    family = raw.get("model_type")
    if family not in _WEIGHTS:
        raise ConfigError(f"config.json: model_type {family!r} is not supported; supported: {', '.join(sorted(_WEIGHTS))}")
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    unsupported = {
        f"rope type {rope_type!r}": rope_type not in ("default", None),
        f"hidden_act {raw.get('hidden_act')!r}": raw.get("hidden_act", "silu") != "silu",
        "attention_bias": family == "llama" and raw.get("attention_bias", False),
        "mlp_bias": raw.get("mlp_bias", False),
        "use_sliding_window": raw.get("use_sliding_window", False),
    }
    for option, present in unsupported.items():
        if present:
            raise ConfigError(f"config.json: {option} is not supported for {family}")
    heads = raw["num_attention_heads"]
    return ModelConfig(
        family=family,
        vocab_size=raw["vocab_size"],
        d_model=raw["hidden_size"],
        n_layers=raw["num_hidden_layers"],
        n_heads=heads,
        n_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        d_mlp=raw["intermediate_size"],
        max_positions=raw["max_position_embeddings"],
        rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
        norm_eps=raw["rms_norm_eps"],
        qkv_bias=family == "qwen2",
        tied_head=raw.get("tie_word_embeddings", False),
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a model."""
    return {
        "architectures": [_ARCHITECTURES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_mlp,
        "max_position_embeddings": config.max_positions,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_head,
    }


def read_params(directory: str | Path, model: Model, shardings: Params) -> Params:
    """Read a directory's safetensors, one tensor after another, each placed as `shardings` says.

    Raises:
      ConfigError: there are no safetensors, or tensors are missing, unexpected or of another shape; all are named.
    """
    files = _tensor_files(Path(directory))
    shapes = _flatten(model.shapes())
    problems = _compare(_expected(model.config, shapes), files)
    if problems:
        raise ConfigError(f"model.path: the tensors of {directory} don't fit its config.json:\n  " + "\n  ".join(problems))
    placed = {}
    flat_shardings = _flatten(shardings)
    for path, shape in tqdm(shapes.items(), desc="read weights", unit="tensor", disable=jax.process_index() > 0):
        name, inputs = _WEIGHTS[model.config.family][path]
        stacked = path.startswith("blocks.")
        whole = np.empty(shape.shape, shape.dtype)
        for layer in range(shape.shape[0] if stacked else 1):
            target = whole[layer] if stacked else whole
            tensor = _read(files, name.format(layer=layer))
            target[...] = (tensor.T if inputs else tensor).reshape(target.shape)
        placed[path] = jax.make_array_from_callback(shape.shape, flat_shardings[path], whole.__getitem__)
    return _unflatten(placed)


def write_params(directory: str | Path, model: Model, params: Params) -> None:
    """Write config.json and sharded safetensors with their index, as `transformers` reads them."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(
        json.dumps(config_to_hf(model.config) | {"dtype": str(np.dtype(model.param_dtype))}, indent=2) + "\n"
    )
    groups: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in _tensors(model, params):
        if groups[-1] and size + tensor.nbytes > MAX_FILE_BYTES:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += tensor.nbytes
    if len(groups) == 1:
        save_file(groups[0], directory / "model.safetensors", {"format": "pt"})
        return
    index: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file(group, directory / file, {"format": "pt"})
        index |= dict.fromkeys(group, file)
    total = sum(tensor.nbytes for group in groups for tensor in group.values())
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2) + "\n"
    )


def _tensors(model: Model, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor under Hugging Face's name and in its layout."""
    for path, value in _flatten(params).items():
        name, inputs = _WEIGHTS[model.config.family][path]
        stacked = path.startswith("blocks.")
        whole = np.asarray(value)
        for layer, tensor in enumerate(whole if stacked else [whole]):
            yield name.format(layer=layer), np.ascontiguousarray(_hf_layout(tensor, path, inputs))


def _hf_layout(tensor: np.ndarray, path: str, inputs: int) -> np.ndarray:
    if inputs:
        return tensor.reshape(math.prod(tensor.shape[:inputs]), -1).T
    return tensor if path == "embed" else tensor.reshape(-1)


def _expected(config: ModelConfig, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that a model of this config has."""
    expected: dict[str, tuple[int, ...]] = {}
    for path, shape in shapes.items():
        name, inputs = _WEIGHTS[config.family][path]
        stacked = path.startswith("blocks.")
        dims = shape.shape[1:] if stacked else shape.shape
        layout = _hf_layout(np.broadcast_to(np.int8(0), dims), path, inputs).shape
        expected |= {name.format(layer=layer): layout for layer in range(config.n_layers if stacked else 1)}
    return expected


def _tensor_files(directory: Path) -> dict[str, Path]:
    """Which file holds which tensor."""
    if not list(directory.glob("*.safetensors")):
        legacy = list(directory.glob("*.bin"))
        remedy = (
            "it holds pickled .bin weights, which can run code when loaded; convert them once with "
            "transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
            if legacy
            else "download the model's *.safetensors files too"
        )
        raise ConfigError(f"model.path: no .safetensors file in {directory}: {remedy}")
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return {name: directory / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    files: dict[str, Path] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            files |= dict.fromkeys(tensors.keys(), file)
    return files


def _compare(expected: Mapping[str, tuple[int, ...]], files: Mapping[str, Path]) -> list[str]:
    problems = [f"missing: {name}" for name in expected if name not in files]
    known_extras = ("rotary_emb.inv_freq", "lm_head.weight")  # buffers of old checkpoints; a tied head's copy
    problems += [f"unexpected: {name}" for name in files if name not in expected and not name.endswith(known_extras)]
    for file in sorted(set(files.values())):
        if not file.is_file():
            problems.append(f"missing file: {file.name}")
            continue
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                if name in expected and tuple(tensors.get_slice(name).get_shape()) != expected[name]:
                    problems.append(f"shape of {name}: {tuple(tensors.get_slice(name).get_shape())}, expected {expected[name]}")
    return problems


def _read(files: Mapping[str, Path], name: str) -> np.ndarray:
    with safe_open(files[name], framework="np") as tensors:
        return tensors.get_tensor(name)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict to {"a.b": leaf}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split(".")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return tree
