"""Low-rank adapters (Hu et al. 2021): chosen matrices w become w + (alpha / rank) * a @ b, and only a and b are trained.

Adapters are a second pytree beside the parameters, with {"a", "b"} in the place of each adapted matrix. The model never sees them:
`merge` gives it plain parameters. They travel as PEFT directories, adapter_config.json and adapter_model.safetensors.

Dims: L layers, R rank, in and out a matrix's input and output dims: D -> N, H for `blocks.q`, N, H -> D for `blocks.o`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from lpo_jax.config import ConfigError, LoraConfig
from lpo_jax.model.families import FAMILIES, Tensor

if TYPE_CHECKING:  # the decoder imports this module
    from lpo_jax.model.decoder import Model, Params

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")

# What else than w + scale * B @ A a PEFT adapter may compute or carry.
_REFUSED = (
    "use_dora", "use_qalora", "use_bdlora", "modules_to_save", "fan_in_fan_out", "lora_bias", "trainable_token_indices", "target_parameters",
    "layer_replication", "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "velora_config",
)  # fmt: skip
_PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal")  # the others, e.g. pissa, also change the base model's weights


def init(key: jax.Array, model: Model, config: LoraConfig) -> Params:
    """Adapters that change nothing yet, float32: a [L?, *in, R] uniform in +-1 / sqrt(fan in) as in PEFT, b [L?, R, *out] zero.

    Raises:
      ConfigError: `config.targets` is no regular expression or matches no matrix; the valid paths are named.
    """
    shapes, inputs = flatten_dict(model.shapes(), sep="."), model.inputs()
    targets = _targets(model, config)
    adapters = {}
    for path, own in zip(targets, jax.random.split(key, len(targets)), strict=True):
        layers, into, out = _split(path, shapes[path].shape, inputs[path])
        bound = math.prod(into) ** -0.5  # kaiming_uniform(a=sqrt(5))
        a = jax.random.uniform(own, (*layers, *into, config.rank), jnp.float32, -bound, bound)
        adapters[path] = {"a": a, "b": jnp.zeros((*layers, config.rank, *out), jnp.float32)}
    return unflatten_dict(adapters, sep=".")


def axes(model: Model, config: LoraConfig) -> Params:
    """For each leaf of `init`, the names of its dimensions (see `lpo_jax.sharding.RULES`); the rank is never cut."""
    names, inputs = flatten_dict(model.axes(), sep="."), model.inputs()
    tree = {}
    for path in _targets(model, config):
        layers, into, out = _split(path, names[path], inputs[path])
        tree[path] = {"a": (*layers, *into, None), "b": (*layers, None, *out)}
    return unflatten_dict(tree, sep=".")


def merge(params: Params, adapters: Params, config: LoraConfig, key: jax.Array | None = None) -> Params:
    """The parameters with w + (alpha / rank) * a @ b for each w that has an adapter, computed in float32 and cast to w's dtype.

    `params` and `adapters` may be the whole trees, the same subtree of both, or one layer's slices of `blocks` inside a scan.

    With a `key`, inputs are dropped with probability `config.dropout` and the others scaled up. PEFT draws a mask for each token;
    a merged weight has one for all tokens of the call. The expectation is the same, the noise of a step is larger.
    """
    if isinstance(params, Mapping):
        keys = [None if key is None else jax.random.fold_in(key, i) for i in range(len(adapters))]
        return params | {name: merge(params[name], adapters[name], config, k) for name, k in zip(sorted(adapters), keys, strict=True)}
    w, a, b = jnp.asarray(params), jnp.asarray(adapters["a"]), jnp.asarray(adapters["b"])
    batch = tuple(range(a.ndim + b.ndim - w.ndim - 2))  # the layer axis, unless we are inside the scan
    if key is not None and config.dropout:
        keep = jax.random.bernoulli(key, 1 - config.dropout, (*a.shape[:-1], 1))
        a = jnp.where(keep, a / (1 - config.dropout), 0)
    # HIGHEST: accelerators would round float32 operands. The product is a small share of a step.
    change = jax.lax.dot_general(a, b, (((a.ndim - 1,), (len(batch),)), (batch, batch)), precision=jax.lax.Precision.HIGHEST)
    return (w.astype(jnp.promote_types(w.dtype, jnp.float32)) + config.alpha / config.rank * change).astype(w.dtype)


def save_peft(directory: str | Path, model: Model, adapters: Params, config: LoraConfig, base_name: str) -> None:
    """Write adapters as `peft.PeftModel.from_pretrained` reads them; `base_name` is the base model's directory or hub name.

    A tensor that fuses several of our matrices (qkv) gets their a's, stacked, and a B of blocks: its rank is the sum of theirs.
    """
    flat, shapes, inputs = flatten_dict(adapters, sep="."), flatten_dict(model.shapes(), sep="."), model.inputs()
    tensors: dict[str, np.ndarray] = {}
    modules: list[str] = []
    ranks: dict[str, int] = {}
    for tensor in _matrices(model):
        adapted = [path for path in tensor.paths if f"{path}.a" in flat]
        if not adapted:
            continue
        a_parts, b_parts = [], {}
        for path in adapted:
            L, into, out = _sizes(path, shapes[path].shape, inputs[path])
            a_parts.append(np.asarray(flat[f"{path}.a"], np.float32).reshape(L, into, -1))
            b_parts[path] = np.asarray(flat[f"{path}.b"], np.float32).reshape(L, -1, out)
        a = np.concatenate(a_parts, axis=-1)
        rank, start, blocks = a.shape[-1], 0, []
        for path in tensor.paths:
            block = np.zeros((len(a), rank, _sizes(path, shapes[path].shape, inputs[path])[2]), np.float32)
            if path in b_parts:
                end = start + b_parts[path].shape[1]
                block[:, start:end], start = b_parts[path], end
            blocks.append(block)
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
    (directory / _CONFIG).write_text(json.dumps(settings, indent=2) + "\n")


def load_peft(directory: str | Path, model: Model) -> tuple[Params, LoraConfig]:
    """Read a PEFT directory: adapters as host arrays, and the config that `merge` needs; `targets` are exactly the paths found.

    Each of our matrices in a fused tensor gets the shared a and its own rows of B. Layers without an adapter or of a smaller rank
    are filled with zeros, and a module's own scale (rank_pattern, alpha_pattern, rslora) is folded into b: a leaf's rank may thus
    differ from `LoraConfig.rank`.

    Raises:
      ConfigError: a file is missing or pickled, an option isn't supported, or tensors don't fit the model; named.
    """
    directory = Path(directory)
    settings = _settings(directory)
    shapes, inputs = flatten_dict(model.shapes(), sep="."), model.inputs()
    found = _pairs(directory / _WEIGHTS)
    rank = settings["r"]
    alpha = settings["lora_alpha"] * (math.sqrt(rank) if settings.get("use_rslora") else 1.0)
    adapters: dict[str, Any] = {}
    for tensor in _matrices(model):
        sizes = [_sizes(path, shapes[path].shape, inputs[path]) for path in tensor.paths]
        L, into, outs = sizes[0][0], sizes[0][1], [out for _, _, out in sizes]
        own = {layer: name for layer in range(L) if (name := _module(tensor).format(layer=layer)) in found}
        if not own:
            continue
        widest = max(found[name]["A"].shape[0] for name in own.values())
        a, b = np.zeros((L, into, widest), np.float32), np.zeros((L, widest, sum(outs)), np.float32)
        for layer, name in own.items():
            A, B = (found[name][side].astype(np.float32) for side in "AB")
            r = _pattern(settings, "rank_pattern", name, rank)
            if A.shape != (r, into) or B.shape != (sum(outs), r):
                raise ConfigError(f"{directory}: {name}: lora_A {A.shape} and lora_B {B.shape}, expected {(r, into)} and {(sum(outs), r)}")
            a[layer, :, :r], b[layer, :r] = A.T, B.T * (_scale(settings, name) * rank / alpha)
        for path, rows in zip(tensor.paths, tensor.cut(b, outs), strict=True):
            # Blocks of `save_peft` come back as they were: rank that a matrix doesn't use isn't its own.
            used = np.asarray(rows.any(axis=(0, 2)) if len(outs) > 1 and b.any() else np.ones(widest, bool))
            if used.any():
                layers, in_dims, out_dims = _split(path, shapes[path].shape, inputs[path])
                r = int(used.sum())
                adapters[path] = {"a": a[..., used].reshape(*layers, *in_dims, r), "b": rows[:, used].reshape(*layers, r, *out_dims)}
        for name in own.values():
            del found[name]
    if found:
        tied = "; this model's lm_head is its embedding table" if model.config.tied_head and "lm_head" in found else ""
        raise ConfigError(f"{directory}: these modules are no matrices of {model.config.family}: {', '.join(sorted(found))}{tied}")
    targets = "|".join(map(re.escape, adapters))
    return unflatten_dict(adapters, sep="."), LoraConfig(rank=rank, alpha=alpha, dropout=settings.get("lora_dropout", 0.0), targets=targets)


def _targets(model: Model, config: LoraConfig) -> list[str]:
    """The paths of the matrices that `config.targets` matches."""
    try:
        pattern = re.compile(config.targets)
    except re.error as error:
        raise ConfigError(f"lora.targets {config.targets!r} is no regular expression: {error}") from None
    targets = [path for path in model.inputs() if pattern.fullmatch(path)]
    if targets:
        return targets
    others = [path for path in flatten_dict(model.shapes(), sep=".") if pattern.fullmatch(path)]
    if others:
        why = f"only {', '.join(others)}, and embeddings, norms and biases have no adapters"
    elif model.config.tied_head and pattern.fullmatch("head"):
        why = "only the head, which is tied: it is the embedding table and no parameter of its own"
    else:
        why = "no parameter"
    raise ConfigError(f"lora.targets {config.targets!r} matches {why}; it must fully match one of: {', '.join(model.inputs())}")


def _split(path: str, dims: Sequence[Any], inputs: int) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """A matrix's dims (or their names): layer axis or nothing, inputs, outputs."""
    layers = int(path.startswith("blocks."))
    return tuple(dims[:layers]), tuple(dims[layers : layers + inputs]), tuple(dims[layers + inputs :])


def _sizes(path: str, dims: Sequence[int], inputs: int) -> tuple[int, int, int]:
    """Layers, flattened inputs and flattened outputs of a matrix; one that isn't layered counts as one layer."""
    layers, into, out = (math.prod(part) for part in _split(path, dims, inputs))
    return layers, into, out


def _matrices(model: Model) -> list[Tensor]:
    """The tensors of the model's checkpoint that hold matrices."""
    return [tensor for tensor in FAMILIES[model.config.family].tensors if set(tensor.paths) <= model.inputs().keys()]


def _module(tensor: Tensor) -> str:
    return tensor.name.removesuffix(".weight")


def _settings(directory: Path) -> dict[str, Any]:
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
    settings: dict[str, Any] = json.loads((directory / _CONFIG).read_text())
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
    for name, tensor in load_file(file).items():
        if match := _KEY.fullmatch(name):
            pairs.setdefault(match[1], {})[match[2]] = tensor
        else:
            others.append(name)
    others += [f"{module} without its lora_{'B' if 'A' in sides else 'A'}" for module, sides in pairs.items() if len(sides) == 1]
    if others:
        raise ConfigError(
            f"{file}: not the A and B of a linear layer: {', '.join(sorted(others))}. If PEFT copied the base model's embeddings here, "
            "save again with save_pretrained(DIR, save_embedding_layers=False)"
        )
    return pairs


def _pattern(settings: Mapping[str, Any], key: str, module: str, default: Any) -> Any:
    """A module's own rank or alpha, found as PEFT finds it."""
    patterns = settings.get(key) or {}
    return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)), default)


def _scale(settings: Mapping[str, Any], module: str) -> float:
    """What a module's B @ A is multiplied with."""
    rank = _pattern(settings, "rank_pattern", module, settings["r"])
    alpha = _pattern(settings, "alpha_pattern", module, settings["lora_alpha"])
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
