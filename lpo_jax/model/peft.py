"""Adapters as PEFT directories: adapter_config.json and adapter_model.safetensors, read and written.

Dims: L layers, R rank, in and out a matrix's input and output dims, flattened.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import pydantic
from flax.traverse_util import flatten_dict, unflatten_dict

from foundation.files import Json, read_object, write_json
from foundation.settings import LARGEST
from lpo_jax.config import ConfigError, LoraConfig
from lpo_jax.model.adapters import matrix_dims, split_dims, target
from lpo_jax.model.decoder import Model, Params
from lpo_jax.model.families import FAMILIES, Tensor
from lpo_jax.model.hf import FLOATS, opened
from lpo_jax.tensors import save_file

X = TypeVar("X")

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")

# What else than w + scale * B @ A a PEFT adapter may compute or carry.
_REFUSED = (
    "use_dora", "use_qalora", "use_bdlora", "modules_to_save", "fan_in_fan_out", "lora_bias", "trainable_token_indices", "target_parameters",
    "layer_replication", "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "velora_config",
)  # fmt: skip
_PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal")  # the others, e.g. pissa, also change the base model's weights


def save_peft(directory: str | Path, model: Model, adapters: Params, config: LoraConfig, base_name: str) -> None:
    """Write adapters as `peft.PeftModel.from_pretrained` reads them; `base_name` is the base model's directory or hub name.

    A tensor may fuse several of our matrices (qkv). It gets their a's, stacked, and a B with a block for each; its rank is the sum of
    theirs.
    """
    flat, dims, inputs = flatten_dict(adapters, sep="."), matrix_dims(model), model.inputs()
    tensors: dict[str, np.ndarray] = {}
    modules: list[str] = []
    ranks: dict[str, int] = {}
    for tensor in _matrices(model):
        adapted = [path for path in tensor.paths if f"{path}.a" in flat]
        if not adapted:
            continue
        sizes = [_sizes(path, dims[path], inputs[path]) for path in tensor.paths]
        L, into, _ = sizes[0]  # the paths of a tensor have the same layers and inputs
        a = np.concatenate([np.asarray(flat[f"{path}.a"], np.float32).reshape(L, into, -1) for path in adapted], axis=-1)
        rank, start, blocks = a.shape[-1], 0, []
        for path, (_, _, out) in zip(tensor.paths, sizes, strict=True):
            blocks.append(np.zeros((L, rank, out), np.float32))
            if path in adapted:
                own = np.asarray(flat[f"{path}.b"], np.float32).reshape(L, -1, out)
                blocks[-1][:, start : start + own.shape[1]] = own
                start += own.shape[1]
        b = tensor.fuse(blocks)
        for layer in range(len(a)):
            module = f"base_model.model.{_module(tensor).format(layer=layer)}"
            tensors[f"{module}.lora_A.weight"] = np.ascontiguousarray(a[layer].T)
            tensors[f"{module}.lora_B.weight"] = np.ascontiguousarray(b[layer].T)
        modules.append(_module(tensor).split("{layer}.")[-1])  # PEFT adapts the modules that end so
        if rank != config.rank:
            ranks[re.escape(modules[-1])] = rank
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / _WEIGHTS, {"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": modules,
        "rank_pattern": ranks,
        "alpha_pattern": {module: config.alpha * rank / config.rank for module, rank in ranks.items()},
        "bias": "none",
    }
    write_json(directory / _CONFIG, settings)


def base_of(directory: str | Path) -> str | None:
    """The model that a PEFT directory's adapters are for; None: it is no such directory.

    Raises:
      ConfigError: it doesn't say.
    """
    file = Path(directory) / _CONFIG
    if not file.is_file():
        return None
    name = read_object(file).get("base_model_name_or_path")
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(
            f"{file}: base_model_name_or_path names no model; write there the directory or hub id that the adapter was trained on"
        )
    return name


def load_peft(directory: str | Path, model: Model) -> tuple[Params, LoraConfig]:
    """Read a PEFT directory: adapters as host arrays, and the config that `merge` needs. Its `targets` are exactly the paths found.

    Each of our matrices in a fused tensor gets the shared a and its own rows of B. A layer without an adapter, or with one of a smaller
    rank, is filled up with zeros. A module's own scale (rank_pattern, alpha_pattern, rslora) is folded into b. A leaf's rank may thus
    differ from `LoraConfig.rank`.

    Raises:
      ConfigError: a file is missing or pickled, an option isn't supported, or tensors don't fit the model; named.
    """
    directory = Path(directory)
    settings = _settings(directory)
    dims, inputs = matrix_dims(model), model.inputs()
    found = _pairs(directory / _WEIGHTS)
    rank = settings["r"]
    alpha = settings["lora_alpha"] * (math.sqrt(rank) if settings.get("use_rslora") else 1.0)
    adapters: Params = {}
    for tensor in _matrices(model):
        sizes = [_sizes(path, dims[path], inputs[path]) for path in tensor.paths]
        L, into, outs = sizes[0][0], sizes[0][1], [out for _, _, out in sizes]
        own = {layer: name for layer in range(L) if (name := _module(tensor).format(layer=layer)) in found}
        if not own:
            continue
        widest = max(found[name]["A"].shape[0] for name in own.values())
        a, b = np.zeros((L, into, widest), np.float32), np.zeros((L, widest, sum(outs)), np.float32)
        for layer, name in own.items():
            A, B = (found[name][side].astype(np.float32) for side in "AB")
            r = _pattern(settings, "rank_pattern", name, rank)
            own_alpha = _pattern(settings, "alpha_pattern", name, settings["lora_alpha"])
            scale = own_alpha / (math.sqrt(r) if settings.get("use_rslora") else r)  # what B @ A is multiplied with
            if A.shape != (r, into) or B.shape != (sum(outs), r):
                raise ConfigError(f"{directory}: {name}: lora_A {A.shape} and lora_B {B.shape}, expected {(r, into)} and {(sum(outs), r)}")
            a[layer, :, :r], b[layer, :r] = A.T, B.T * (scale * rank / alpha)
        for path, rows in zip(tensor.paths, tensor.cut(b, outs), strict=True):
            # Blocks of `save_peft` come back as they were: rank that a matrix doesn't use isn't its own.
            used = np.asarray(rows.any(axis=(0, 2)) if len(outs) > 1 and b.any() else np.ones(widest, bool))
            if used.any():
                layers, in_dims, out_dims = split_dims(path, dims[path], inputs[path])
                r = int(used.sum())
                adapters[path] = {"a": a[..., used].reshape(*layers, *in_dims, r), "b": rows[:, used].reshape(*layers, r, *out_dims)}
        for name in own.values():
            del found[name]
    if found:
        raise ConfigError(
            f"{directory}: these modules are no matrices of {model.config.family}: {', '.join(' '.join(name.split()) for name in sorted(found)[:8])}"
        )
    targets = "|".join(re.escape(target(model, path)) for path in adapters)
    return unflatten_dict(adapters, sep="."), LoraConfig(rank=rank, alpha=alpha, dropout=settings.get("lora_dropout", 0.0), targets=targets)


def _sizes(path: str, dims: Sequence[int], inputs: int) -> tuple[int, int, int]:
    """Layers, flattened inputs and flattened outputs of a matrix. One outside of the layers counts as one layer."""
    layers, into, out = (math.prod(part) for part in split_dims(path, dims, inputs))
    return layers, into, out


def _matrices(model: Model) -> list[Tensor]:
    """The tensors of the model's checkpoint that hold matrices."""
    return [tensor for tensor in FAMILIES[model.config.family].tensors if set(tensor.paths) <= model.inputs().keys()]


def _module(tensor: Tensor) -> str:
    return tensor.name.removesuffix(".weight")


def _regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{pattern[:80]!r} is no regular expression ({error})") from None
    return pattern


_Pattern = Annotated[str, pydantic.AfterValidator(_regex)]
_Rank = Annotated[int, pydantic.Field(strict=True, gt=0, le=LARGEST)]
_Scale = Annotated[float, pydantic.Field(strict=True, gt=0, le=LARGEST)]
_Share = Annotated[float, pydantic.Field(strict=True, ge=0, lt=1)]


@dataclass
class _Numbers:
    """Those of an adapter_config.json. The patterns are regular expressions of modules."""

    r: _Rank
    lora_alpha: _Scale
    rank_pattern: dict[_Pattern, _Rank] | None = None
    alpha_pattern: dict[_Pattern, _Scale] | None = None
    lora_dropout: _Share = 0.0


_check_numbers = pydantic.TypeAdapter(_Numbers).validate_python


def _settings(directory: Path) -> Json:
    """A PEFT directory's adapter_config.json, if we can compute what it says."""
    for file in (_CONFIG, _WEIGHTS):
        if (directory / file).is_file():
            continue
        if (directory / "adapter_model.bin").is_file():
            raise ConfigError(
                f"{directory}: adapter_model.bin is pickled and can run code when loaded; convert it once with peft: "
                "PeftModel.from_pretrained(BASE, DIR).save_pretrained(NEW_DIR)"
            )
        raise ConfigError(f"{directory / file} doesn't exist; give a directory that PEFT's save_pretrained wrote")
    settings = read_object(directory / _CONFIG)
    try:
        numbers = _check_numbers(settings)
    except (pydantic.ValidationError, OverflowError) as error:
        said = str(error)
        if isinstance(error, pydantic.ValidationError):
            first = error.errors(include_url=False)[0]
            said = f"{'.'.join(map(str, first['loc']))[:80] or 'the file'}: {first['msg']}"
        raise ConfigError(f"{directory / _CONFIG}: {said}") from None
    if slow := [pattern for pattern in {**(numbers.rank_pattern or {}), **(numbers.alpha_pattern or {})} if re.search(r"\)[*+{]", pattern)]:
        raise ConfigError(f"{directory / _CONFIG}: the pattern {slow[0]!r} repeats a group, which can take for ever")
    wrong = [f"{key} {settings[key]!r}" for key in _REFUSED if settings.get(key)]
    wrong += [f"{key} {settings[key]!r}" for key, only in (("peft_type", "LORA"), ("bias", "none")) if settings.get(key, only) != only]
    if settings.get("init_lora_weights", True) not in _PLAIN_INITS:
        wrong.append(f"init_lora_weights {settings['init_lora_weights']!r} (it changes the base model)")
    if wrong:
        raise ConfigError(f"{directory / _CONFIG}: not supported: {', '.join(wrong)}; plain LoRA on linear layers is")
    return settings


def _pairs(file: Path) -> dict[str, dict[str, np.ndarray]]:
    """The tensors of an adapter: {module: {"A": [R, in], "B": [out, R]}}."""
    pairs: dict[str, dict[str, np.ndarray]] = {}
    others = []
    tensors = opened(file, "adapter")
    for name in tensors.keys():  # noqa: SIM118
        tensor = tensors.get_tensor(name) if tensors.get_slice(name).get_dtype() in FLOATS else None
        if tensor is None or tensor.ndim != 2:
            others.append(f"{name} (no matrix of floating-point numbers)")
        elif match := _KEY.fullmatch(name):
            pairs.setdefault(match[1], {})[match[2]] = tensor
        else:
            others.append(name)
    others += [f"{module} without its lora_{'B' if 'A' in sides else 'A'}" for module, sides in pairs.items() if len(sides) == 1]
    if not pairs and not others:
        raise ConfigError(f"{file}: no tensor is in it: nothing was trained, or saving went wrong; save the adapter again")
    if others:
        raise ConfigError(
            f"{file}: not the A and B of a linear layer: {', '.join(' '.join(name.split()) for name in sorted(others)[:8])}. If PEFT copied the base model's embeddings here, "
            "save again with save_pretrained(DIR, save_embedding_layers=False)"
        )
    return pairs


def _pattern(settings: Json, key: str, module: str, default: X) -> X:
    """A module's own rank or alpha, found as PEFT finds it."""
    patterns = settings.get(key) or {}
    return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)), default)
