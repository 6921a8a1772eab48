"""Adapters as PEFT directories: adapter_config.json and adapter_model.safetensors, read and written.

Dims: L layers, R rank, in and out a matrix's input and output dims, flattened.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import jax
import numpy as np
import pydantic
from flax.traverse_util import flatten_dict, unflatten_dict

from foundation.files import Json, read_object, write_json
from foundation.settings import LARGEST
from lpo_jax.config import ConfigError, LoraConfig
from lpo_jax.model.adapters import matrix_dims, split_dims, target, untied
from lpo_jax.model.decoder import Model, Params
from lpo_jax.model.families import FAMILIES, Tensor
from lpo_jax.model.hf import tensor_shapes
from lpo_jax.model.tensor_files import FLOATS, opened
from lpo_jax.tensors import on_host, save_file

X = TypeVar("X")

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_(?:([AB])\.weight|(magnitude_vector))")

# What else than w + scale * B @ A a PEFT adapter may compute or carry.
_REFUSED = (
    "use_qalora", "use_bdlora", "fan_in_fan_out", "lora_bias", "trainable_token_indices",
    "layer_replication", "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "velora_config",
)  # fmt: skip
_PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal")  # the others, e.g. pissa, also change the base model's weights


def save_peft(directory: str | Path, model: Model, adapters: Params, config: LoraConfig, base_name: str, dtype: str = "float32") -> None:
    """Write adapters, as `dtype`, as `peft.PeftModel.from_pretrained` reads them; `base_name` is the base model's directory or hub name.

    A tensor may fuse several of our matrices (qkv). It gets their a's, stacked, and a B with a block for each; its rank is the sum of
    theirs. All processes call it together; process 0 writes.
    """
    flat, dims, inputs = flatten_dict(on_host(adapters), sep="."), matrix_dims(model), model.inputs()
    if jax.process_index() > 0:
        return
    tensors: dict[str, np.ndarray] = {}
    modules: list[str] = []
    ranks: dict[str, int] = {}
    for tensor in _matrices(model):
        adapted = [path for path in tensor.paths if f"{path}.a" in flat]
        if not adapted:
            continue
        sizes = [_sizes(path, dims[path], inputs[path]) for path in tensor.paths]
        L, into, _ = sizes[0]  # the paths of a tensor have the same layers, or experts in these, and inputs
        a = np.concatenate([np.asarray(flat[f"{path}.a"], np.float32).reshape(L, into, -1) for path in adapted], axis=-1)
        rank, start, blocks = a.shape[-1], 0, []
        for path, (_, _, out) in zip(tensor.paths, sizes, strict=True):
            blocks.append(np.zeros((L, rank, out), np.float32))
            if path in adapted:
                own = np.asarray(flat[f"{path}.b"], np.float32).reshape(L, -1, out)
                blocks[-1][:, start : start + own.shape[1]] = own
                start += own.shape[1]
        b, norms = tensor.fuse(blocks), np.empty(0, np.float32)
        if config.dora:
            norms = tensor.fuse([np.asarray(flat[f"{path}.norm"], np.float32).reshape(L, -1) for path in adapted])
        for index, module in enumerate(_modules(tensor, model)):
            module = f"base_model.model.{module}"
            tensors[f"{module}.lora_A.weight"] = np.ascontiguousarray(a[index].T)
            tensors[f"{module}.lora_B.weight"] = np.ascontiguousarray(b[index].T)
            if config.dora:
                tensors[f"{module}.lora_magnitude_vector"] = np.ascontiguousarray(norms[index])
        modules.append(tensor.name.removesuffix(".weight").split("}.")[-1])  # PEFT adapts the modules that end so
        if rank != config.rank:
            ranks[re.escape(modules[-1])] = rank
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.astype(dtype, copy=False) for name, tensor in tensors.items()}, directory / _WEIGHTS, {"format": "pt"})
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
        "alpha_pattern": {module: config.scale * _divisor(rank, config.rslora) for module, rank in ranks.items()},
        "use_rslora": config.rslora,
        "use_dora": config.dora,
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


class Peft(NamedTuple):
    """What a PEFT directory holds, as host arrays."""

    adapters: Params
    config: LoraConfig  # what `merge` needs; its `targets` are exactly the paths found
    saved: dict[str, np.ndarray]  # whole tensors in the place of the model's (modules_to_save), see `lpo_jax.model.hf.replace_params`


def load_peft(directory: str | Path, model: Model) -> tuple[Params, LoraConfig]:
    """`read_peft`, for what works beside the model.

    Raises:
      ConfigError: as there; or it brings whole tensors.
    """
    adapters, config, saved = read_peft(directory, model)
    if config.dora:
        raise ConfigError(f"{directory}: use_dora: such an adapter is only merged: give it alone and without a name (--adapter DIR)")
    if saved:
        raise ConfigError(
            f"{directory}: its modules_to_save are whole tensors ({', '.join(sorted(saved)[:8])}), which can't stand beside the model's: give it "
            "alone and without a name (--adapter DIR), to be merged"
        )
    return adapters, config


def read_peft(directory: str | Path, model: Model) -> Peft:
    """Read a PEFT directory.

    Each of our matrices in a fused tensor gets the shared a and its own rows of B. A layer without an adapter, or with one of a smaller
    rank, is filled up with zeros. A module's own scale (rank_pattern, alpha_pattern, rslora) is folded into b. A leaf's rank may thus
    differ from `LoraConfig.rank`.

    Raises:
      ConfigError: a file is missing or pickled, an option isn't supported, or tensors don't fit the model; named.
    """
    directory = Path(directory)
    settings = _settings(directory, model.config.experts > 0)
    dims, inputs = matrix_dims(model), model.inputs()
    sides = ("A", "B", "magnitude_vector") if settings.get("use_dora") else ("A", "B")
    found, saved = _tensors(
        directory / _WEIGHTS, sides, tensor_shapes(untied(model, {"head": {}})) if settings.get("modules_to_save") else {}
    )
    if missing := [module for module in settings.get("modules_to_save") or () if not any(module in name for name in saved)]:
        raise ConfigError(f"{directory}: modules_to_save {missing}: {_WEIGHTS} holds no tensor of them; save the adapter again")
    if saved and model.config.tied_head and any(name.startswith(("lm_head.", _embedding(model))) for name in saved):
        raise ConfigError(
            f"{directory}: modules_to_save {settings['modules_to_save']}: this model's head is its embedding table, and they would part; merge it "
            "once with peft (merge_and_unload, save_pretrained), and give that as the model"
        )
    fused = _unfuse(found, model, directory)
    rslora, dora = bool(settings.get("use_rslora")), bool(settings.get("use_dora"))
    config = LoraConfig(settings["r"], settings["lora_alpha"], settings.get("lora_dropout", 0.0), rslora=rslora, dora=dora)
    adapters: Params = {}
    for tensor in _matrices(model):
        sizes = [_sizes(path, dims[path], inputs[path]) for path in tensor.paths]
        L, into, outs = sizes[0][0], sizes[0][1], [out for _, _, out in sizes]
        own = {index: name for index, name in enumerate(_modules(tensor, model)) if name in found}
        if not own:
            continue
        widest = max(found[name]["A"].shape[0] for name in own.values())
        a, b = np.zeros((L, into, widest), np.float32), np.zeros((L, widest, sum(outs)), np.float32)
        norm = np.zeros((L, sum(outs)), np.float32)
        if dora and (len(own) < L or tensor.of_experts):
            what = "of experts" if tensor.of_experts else "in some layers only"
            raise ConfigError(f"{directory}: with use_dora an adapter of {tensor.name} {what} isn't supported; merge it with peft")
        for layer, name in own.items():
            A, B = (found[name][side].astype(np.float32) for side in "AB")
            called = _fused(name) if name in fused else name
            r = _pattern(settings, "rank_pattern", called, config.rank)
            scale = _pattern(settings, "alpha_pattern", called, config.alpha) / _divisor(r, rslora)  # what B @ A is multiplied with
            if A.shape != (r, into) or B.shape != (sum(outs), r):
                raise ConfigError(f"{directory}: {name}: lora_A {A.shape} and lora_B {B.shape}, expected {(r, into)} and {(sum(outs), r)}")
            if dora:
                if found[name]["magnitude_vector"].shape != (sum(outs),):
                    raise ConfigError(
                        f"{directory}: {name}: lora_magnitude_vector {found[name]['magnitude_vector'].shape}, expected {(sum(outs),)}"
                    )
                norm[layer] = found[name]["magnitude_vector"]
            a[layer, :, :r], b[layer, :r] = A.T, B.T * (scale / config.scale)
        for path, rows, its in zip(tensor.paths, tensor.cut(b, outs), tensor.cut(norm, outs), strict=True):
            # Blocks of `save_peft` come back as they were: rank that a matrix doesn't use isn't its own.
            used = np.asarray(rows.any(axis=(0, 2)) if len(outs) > 1 and b.any() else np.ones(widest, bool))
            used |= dora and not used.any()  # a norm is left
            if used.any():
                layers, in_dims, out_dims = split_dims(path, dims[path], inputs[path])
                r = int(used.sum())
                adapters[path] = {"a": a[..., used].reshape(*layers, *in_dims, r), "b": rows[:, used].reshape(*layers, r, *out_dims)}
                adapters[path] |= {"norm": its.reshape(*layers, *out_dims)} if dora else {}
        for name in own.values():
            del found[name]
    if found:
        raise ConfigError(
            f"{directory}: these modules are no matrices of {model.config.family}: {', '.join(' '.join(name.split()) for name in sorted(found)[:8])}"
        )
    targets = "|".join(re.escape(target(model, path)) for path in adapters)
    return Peft(unflatten_dict(adapters, sep="."), replace(config, targets=targets), saved)


def _divisor(rank: int, rslora: bool) -> float:
    """What alpha is divided by."""
    return math.sqrt(rank) if rslora else rank


def _sizes(path: str, dims: Sequence[int], inputs: int) -> tuple[int, int, int]:
    """Layers, flattened inputs and flattened outputs of a matrix. One outside of the layers counts as one layer."""
    layers, into, out = (math.prod(part) for part in split_dims(path, dims, inputs))
    return layers, into, out


def _matrices(model: Model) -> list[Tensor]:
    """The tensors of the model's checkpoint that hold matrices."""
    return [tensor for tensor in FAMILIES[model.config.family].tensors if set(tensor.paths) <= model.inputs().keys()]


def _modules(tensor: Tensor, model: Model) -> list[str]:
    """The modules whose weight a tensor is, layer by layer, expert by expert."""
    return [name.removesuffix(".weight") for names in tensor.names(model.config.n_layers, model.config.experts) for name in names]


def _unfuse(found: dict[str, dict[str, np.ndarray]], model: Model, directory: Path) -> set[str]:
    """Cut adapters of all of a layer's experts together (PEFT's `target_parameters`) into one for each expert's module, in place.

    For E experts, A is [E R, in], expert by expert, and B [out, R E], with the experts in turn. Where both of a layer's parameters have one, PEFT
    wraps one module in the other; which is which their shapes say.

    Returns:
      The modules that come from such adapters.
    """
    c, made = model.config, set[str]()
    if not c.experts:
        return made
    shapes = {(c.d_model, 2 * c.d_expert): ("gate_proj", "up_proj"), (c.d_expert, c.d_model): ("down_proj",)}
    for name in [name for name in found if re.search(r"\.mlp\.experts(\.base_layer)*$", name)]:
        A, B = (found[name][side] for side in "AB")
        parts = shapes.get((A.shape[1], B.shape[0]))
        if parts is None or A.shape[0] % c.experts or A.shape[0] != B.shape[1]:
            raise ConfigError(
                f"{directory}: {name}: lora_A {A.shape} and lora_B {B.shape} fit neither gate_up_proj nor down_proj of {c.experts} experts"
            )
        a, b = A.reshape(c.experts, -1, A.shape[1]), np.moveaxis(B.reshape(B.shape[0], -1, c.experts), -1, 0)
        for part, rows in zip(parts, np.split(b, len(parts), axis=1), strict=True):
            own = {f"{name.removesuffix('.base_layer')}.{expert}.{part}": expert for expert in range(c.experts)}
            found |= {module: {"A": a[expert], "B": rows[expert]} for module, expert in own.items()}
            made |= own.keys()
        del found[name]
    return made


def _fused(module: str) -> str:
    """What PEFT calls the parameter that an expert's module is a part of, when it looks its rank up."""
    return re.sub(r"\.\d+\.(gate|up)_proj$", ".gate_up_proj", re.sub(r"\.\d+\.down_proj$", ".down_proj", module))


def _embedding(model: Model) -> str:
    """The name of the embedding table."""
    return next(tensor.name for tensor in FAMILIES[model.config.family].tensors if tensor.paths == ("embed",))


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


def _settings(directory: Path, experts: bool) -> Json:
    """A PEFT directory's adapter_config.json, if we can compute what it says; of a model with `experts` or without."""
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
    refused = _REFUSED if experts else (*_REFUSED, "target_parameters")
    wrong = [f"{key} {settings[key]!r}" for key in refused if settings.get(key)]
    wrong += [f"{key} {settings[key]!r}" for key, only in (("peft_type", "LORA"), ("bias", "none")) if settings.get(key, only) != only]
    if settings.get("init_lora_weights", True) not in _PLAIN_INITS:
        wrong.append(f"init_lora_weights {settings['init_lora_weights']!r} (it changes the base model)")
    saved = settings.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(module, str) and module for module in saved):
        wrong.append(f"modules_to_save {str(saved)[:80]!r} (it is a list of names)")
    if wrong:
        raise ConfigError(f"{directory / _CONFIG}: not supported: {', '.join(wrong)}; LoRA on linear layers is")
    return settings


def _tensors(
    file: Path, sides: Sequence[str], whole: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """The tensors of an adapter: {module: {"A": [R, in], "B": [out, R], "magnitude_vector": [out]}}, of a module all that `sides` says; and those in
    the place of the model's, of these names and shapes."""
    pairs: dict[str, dict[str, np.ndarray]] = {}
    saved: dict[str, np.ndarray] = {}
    others = []
    tensors = opened(file, "adapter")
    for name in tensors.keys():  # noqa: SIM118
        tensor = tensors.get_tensor(name) if tensors.get_slice(name).get_dtype() in FLOATS else None
        replaced = name.removeprefix("base_model.model.")
        if tensor is not None and whole.get(replaced) == tensor.shape:
            saved[replaced] = tensor
        elif tensor is None or tensor.ndim != (1 if name.endswith("vector") else 2):
            others.append(f"{name} (no matrix of floating-point numbers)")
        elif match := _KEY.fullmatch(name):
            pairs.setdefault(match[1], {})[match[2] or match[3]] = tensor
        else:
            others.append(name)
    others += [f"{module} without its lora_{side}" for module, its in pairs.items() for side in sides if side not in its]
    others += [f"{module}.lora_{side} (use_dora is off)" for module, its in pairs.items() for side in its if side not in sides]
    if not pairs and not saved and not others:
        raise ConfigError(f"{file}: no tensor is in it: nothing was trained, or saving went wrong; save the adapter again")
    if others:
        raise ConfigError(
            f"{file}: not the A and B of a linear layer: {', '.join(' '.join(name.split()) for name in sorted(others)[:8])}. If PEFT copied the base model's embeddings here, "
            "save again with save_pretrained(DIR, save_embedding_layers=False)"
        )
    return pairs, saved


def _pattern(settings: Json, key: str, module: str, default: X) -> X:
    """A module's own rank or alpha, found as PEFT finds it."""
    patterns = settings.get(key) or {}
    return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)), default)
