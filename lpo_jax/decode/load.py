"""Opening what decodes: a model from a Hugging Face directory, a hub id or a run's directory, and all that `lpo generate` and `lpo serve` name."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax
from jax.sharding import Mesh
from qwix import QArray

from data_pipeline import tokenizer as tokenizers
from data_pipeline.shards import Manifest
from data_pipeline.tokenizer import Tokenizer
from foundation.files import read_object
from foundation.stores import HUB_ID
from lpo_jax.config import ConfigError, LoraConfig, MeshConfig, ModelConfig, ModelSource
from lpo_jax.decode.cross_sampler import CrossSampler
from lpo_jax.decode.request import LoadedModel, SamplingConfig, check_vocab
from lpo_jax.decode.rules import vocab_map
from lpo_jax.decode.rules.codecode import CoDecoding
from lpo_jax.decode.rules.crosec import CroSec
from lpo_jax.decode.sampler import Sampler
from lpo_jax.model import hf, lora, peft
from lpo_jax.model.adapters import joined, joined_axes, untied
from lpo_jax.model.decoder import Model, Params
from lpo_jax.sharding import make_mesh
from lpo_jax.train.state import base_shardings, param_shardings, shardings
from lpo_jax.train.weights import check_here, float_base, merge_adapter, open_run, restore_params, tokenizer_directory

log = logging.getLogger(__name__)

ROWS_PER_CUT = 16
"""Rows at work for each cut of the batch, by default."""


@dataclass(frozen=True)
class Models:
    """Which models decode, how two of them do it together, and where."""

    model: str  # a Hugging Face directory, a hub id, or a run_dir
    adapter: str | None = None  # a PEFT directory, merged
    adapters: Mapping[str, str] | None = None  # PEFT directories by name, beside the model: each request names one, or none
    security: str | None = None  # a second model, which proposes the tokens, or (CroSec) is mixed in
    security_adapter: str | None = None
    rule: CoDecoding | CroSec | None = None  # default, of two models: the preset `aligned`
    tokenizer: str | None = None  # default: the model's own
    security_tokenizer: str | None = None  # for CroSec; default: the second model's own
    block: int | None = None  # see `Sampler`
    rows: int | None = None
    max_len_tokens: int | None = None  # default: what the models were made for
    cache_gib: float | None = None  # see `Sampler`
    dtype: str | None = None  # of weights and matmuls; default: float32 on CPUs, else bfloat16
    quantize: str | None = None  # how the blocks' matrices are held, see `lpo_jax.model.quantized`; default: in `dtype`
    mesh: MeshConfig = MeshConfig(data=-1, fsdp=1)  # whole copies of the model


@dataclass(frozen=True)
class Found:
    """What is known of `models` before their weights are read."""

    models: Models
    tokenizer_path: str
    tokenizer: Tokenizer
    security_tokenizer: Tokenizer | None  # for CroSec
    max_len_tokens: int  # of a prompt and its completion

    @property
    def dtype(self) -> str:
        """As asked for; else what suits the devices."""
        return self.models.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")


def find(models: Models) -> Found:
    """Find and check tokenizers and lengths: what can be refused is refused before weights are read.

    Raises:
      ConfigError: a model isn't there, or a tokenizer isn't the model's.
      DataError: there is no such tokenizer.
    """
    _check_here(models)
    path = models.tokenizer or _tokenizer_of(models.model)
    found, its = tokenizers.load(path), None
    if models.max_len_tokens is not None:  # a hub's model needn't be fetched for that
        check_longest(models, {reader: shape_of(reader) for reader in readers(models)})
    if isinstance(models.rule, CroSec):
        assert models.security is not None
        its = tokenizers.load(models.security_tokenizer or _tokenizer_of(models.security))
        _check_tokenizer(models.security, its)
    elif models.security is not None:
        _check_agree(models, found)
    limits = [_check_tokenizer(reader, found).max_positions for reader in readers(models)]
    return Found(models, path, found, its, models.max_len_tokens or min(limits))


def _check_directory(what: str, path: Path, adapter: bool) -> None:
    if adapter and not (path / "adapter_config.json").is_file():
        raise ConfigError(f"the {what} {path}/adapter_config.json doesn't exist; give a directory that PEFT's save_pretrained wrote")
    if not adapter and not (path / "config.json").is_file():
        it_is = {"adapter_config.json": "an adapter: give its base model, and this as --adapter", "manifest.json": "a shard set"}
        found = next((f"; it is {kind}" for name, kind in it_is.items() if (path / name).is_file()), "")
        raise ConfigError(f"the {what} {path} holds neither a model nor a run: it has no config.json{found}")


def readers(models: Models) -> list[str]:
    """Those that read the first tokenizer's tokens."""
    return [models.model] if models.security is None or isinstance(models.rule, CroSec) else [models.model, models.security]


def shape_of(path: str) -> ModelConfig:
    """The shape of `load_model`'s model, of which no more than config.json is read.

    Raises:
      UserError: it can't be.
    """
    run = open_run(path)
    return hf.planned_config(ModelSource(path=path) if run is None else run.model)


def check_longest(models: Models, shapes: Mapping[str, ModelConfig]) -> None:
    """Refuse texts that are longer than a model was made for, of those whose shape is known.

    Raises:
      ConfigError: naming flag and model.
    """
    for name, shape in shapes.items():
        if models.max_len_tokens is not None and models.max_len_tokens > shape.max_positions:
            raise ConfigError(f"--max-len-tokens {models.max_len_tokens}: {name} was made for {shape.limit}: give no more")


def _check_here(models: Models) -> None:
    """Refuse what can't be a model's or an adapter's name; whether the hub or a bucket has it is found out later."""
    adapters = {"adapter": models.adapter, "security model's adapter": models.security_adapter}
    adapters |= {f"adapter {name}": directory for name, directory in (models.adapters or {}).items()}
    for what, path in {"model": models.model, "security model": models.security, **adapters}.items():
        if path is None:
            continue
        if Path(path).is_dir():
            _check_directory(what, Path(path), what in adapters)
            continue
        if Path(path).exists():
            raise ConfigError(f"the {what} {path} is a file; give the directory that it is in")
        if what in adapters:
            raise ConfigError(f"the {what} {path}: there is no such directory in {Path.cwd()}")
        if "://" not in path and not HUB_ID.fullmatch(path):
            raise ConfigError(f"the {what} {path} is neither a directory in {Path.cwd()}, nor a hub id (OWNER/NAME), nor a bucket's folder")


def open_sampler(
    found: Found, config: SamplingConfig, max_len_tokens: int, *, alignments: Path = Path(), segment_steps: int = 16
) -> Sampler | CrossSampler:
    """Read the weights, and make the sampler that the rule asks for.

    Args:
      max_len_tokens: the longest prompt and completion together.
      alignments: the directory where CroSec keeps the alignment of two vocabularies.
      segment_steps: see `Sampler`.

    Raises:
      ConfigError: files, mesh, rows or lengths don't fit; with the numbers.
    """
    models, tok, its = found.models, found.tokenizer, found.security_tokenizer
    mesh = make_mesh(models.mesh)
    target = load_model(models.model, mesh, found.dtype, models.adapter, models.quantize)
    if models.adapters:
        target = with_adapters(target, models.adapters)
    target = target.for_decoding()
    security = None
    if models.security is not None:
        security = load_model(models.security, mesh, found.dtype, models.security_adapter, models.quantize).for_decoding()
    rows = models.rows or ROWS_PER_CUT * target.cuts
    if isinstance(models.rule, CroSec):
        assert security is not None and its is not None
        if models.cache_gib is not None:
            raise ConfigError("--cache-gib isn't for CroSec, whose caches have room for all rows: lower --rows or --max-len-tokens")
        alignment = vocab_map.load_or_align(alignments, vocab_map.vocabulary(target, tok), vocab_map.vocabulary(security, its))
        return CrossSampler(target, security, tok, its, alignment, config, rows, max_len_tokens, rule=models.rule)
    return Sampler(
        target,
        tok,
        config,
        rows,
        max_len_tokens,
        security=security,
        rule=models.rule,
        block=models.block,
        segment_steps=segment_steps,
        cache_gib=models.cache_gib,
    )


def _tokenizer_of(path: str) -> str:
    """Where the tokenizer of `load_model`'s model is."""
    run = open_run(path)
    if run is None:
        return path
    check_here(path, run)
    return run.data.tokenizer or str(tokenizer_directory(run))


def _check_agree(models: Models, ours: Tokenizer) -> None:
    """Refuse two models to which an id means different tokens: what one proposes the other would read as something else."""
    assert models.security is not None
    theirs = tokenizers.load(_tokenizer_of(models.security))
    unlike, more, fewer = tokenizers.compare(ours, theirs)
    if unlike is not None:
        index, mine, its = unlike
        raise ConfigError(
            f"--security {models.security}: its tokenizer has {its!r} as token {index}, {models.model}'s has {mine!r}: such models can't decode "
            "token by token together; --preset crosec aligns two vocabularies"
        )
    if more or fewer:
        log.info("%s's tokenizer has %d tokens that %s's hasn't, which has %d others", models.model, more, models.security, fewer)


def _check_tokenizer(path: str, tokenizer: Tokenizer) -> ModelConfig:
    """The shape of `load_model`'s model, without its weights.

    Raises:
      ConfigError: the tokenizer has more entries than its vocabulary, or isn't the one that the run was trained with.
    """
    run = open_run(path)
    shape = hf.read_config(hf.locate(path)) if run is None else hf.model_config(run.model)
    check_vocab(shape, path, tokenizer.size)
    manifest = Path(path) / "data.json"
    if run is not None and manifest.is_file() and Manifest.read(manifest).tokenizer_sha256 != tokenizer.sha256:
        raise ConfigError(f"{path} was trained with another tokenizer: give the one of its shards with --tokenizer")
    return shape


def load_model(path: str, mesh: Mesh, dtype: str, adapter: str | None = None, quantize: str | None = None) -> LoadedModel:
    """A model with its weights in `dtype`, cut over `mesh` as training cuts them; adapters are merged.

    Args:
      path: a Hugging Face directory or hub id, or a run_dir: of that the newest checkpoint. Adapters that were trained beside quantised weights
        are merged into these as they were before.
      adapter: a PEFT directory, merged too.
      quantize: how the blocks' matrices are held then; None: in `dtype`. Where there is nothing to merge, no float copy of them is ever whole.

    Raises:
      ConfigError: `path` is none of these, the run has no checkpoint, or the files don't fit; with the remedy.
    """
    run = open_run(path)
    if run is None:
        directory = hf.locate(path)
        model = Model(hf.read_config(directory), compute_dtype=dtype, param_dtype=dtype, quantize=None if adapter else quantize)
        params, ids = hf.read_params(directory, model, base_shardings(model, mesh)), _eos_ids(directory)
    else:
        trained, params, frozen = restore_params(path, float_base(run), mesh)
        merged = trained if trained.lora is None else untied(trained, params)
        model = Model(merged.config, compute_dtype=dtype, param_dtype=dtype)
        params = _convert(model, mesh, params, frozen, trained.lora)
        ids = _eos_ids(tokenizer_directory(run))
    if adapter is not None:
        model, params = merge_adapter(adapter, model, mesh, params)
    if quantize != model.quantize:
        model = replace(model, quantize=quantize)
        params = _quantized(model, mesh, params)
    return LoadedModel(model, params, mesh, ids)


def with_adapters(base: LoadedModel, directories: Mapping[str, str]) -> LoadedModel:
    """A model with adapters beside it: PEFT directories by name.

    Raises:
      ConfigError: a directory holds what can't be computed so, or doesn't fit; named.
    """
    read = [peft.load_peft(directory, base.model) for directory in directories.values()]
    for directory, (adapters, _) in zip(directories.values(), read, strict=True):
        if experts := sorted(name for name in adapters.get("blocks", {}) if name.startswith("expert_")):
            raise ConfigError(f"{directory}: {', '.join(experts)}: adapters of experts are only merged: give it alone and without a name")
    found = joined(read, base.model.compute_dtype)
    places = shardings(joined_axes(base.model, found), found, base.mesh)
    return replace(base, adapters=jax.device_put(found, places), names=tuple(directories))


def _convert(model: Model, mesh: Mesh, params: Params, frozen: Params, config: LoraConfig | None) -> Params:
    """What a run trained as plain parameters of `model`."""

    def whole(params: Params, frozen: Params) -> Params:
        merged = params if config is None else lora.merge(frozen, params, config)
        return jax.tree.map(lambda x: x.astype(model.param_dtype), merged)

    return jax.jit(whole, out_shardings=param_shardings(model, mesh))(params, frozen)


def _quantized(model: Model, mesh: Mesh, params: Params) -> Params:
    """Float parameters as `model` holds them. `params` is used up, matrix by matrix."""
    places, blocks = base_shardings(model, mesh)["blocks"], dict(params["blocks"])
    for name, place in places.items():
        if isinstance(place, QArray):
            one = jax.jit(lambda w, name=name: model.base({"blocks": {name: w}})["blocks"][name], out_shardings=place)
            whole, blocks[name] = blocks[name], jax.block_until_ready(one(blocks[name]))
            whole.delete()
    return params | {"blocks": blocks}


def _eos_ids(directory: Path) -> tuple[int, ...]:
    """Every token that config.json and generation_config.json say ends a text."""
    ids: set[int] = set()
    for file in (directory / "config.json", directory / "generation_config.json"):
        found = read_object(file).get("eos_token_id")
        tokens = [] if found is None else found if isinstance(found, list) else [found]
        if not all(type(token) is int and 0 <= token < 2**31 for token in tokens):
            raise ConfigError(
                f"{file}: eos_token_id {str(found)[:80]!r} is no token, nor a list of some; correct it, or copy or download the file again"
            )
        ids |= set(tokens)
    return tuple(sorted(ids))
