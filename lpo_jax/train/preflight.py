"""What can be known of a run before it begins, from its config, its mesh and the manifests of its shards: no device, weight or network is needed.

`lpo train` asks before its first step, `lpo plan` before it compiles, and every launcher before it plans and pays.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from data_pipeline import tokenizer
from data_pipeline.shards import Manifest
from foundation.errors import UserError
from lpo_jax import objectives
from lpo_jax.config import ConfigError, ModelConfig, RunConfig, StageConfig
from lpo_jax.sharding import mesh_shape, row_cuts


@dataclass
class Findings:
    """What was found, each on a line that names key and remedy."""

    errors: list[str] = field(default_factory=list)
    """the run would be refused"""
    warnings: list[str] = field(default_factory=list)
    """it would go on, and may not do what is meant"""

    def raise_first(self) -> None:
        """Raise ConfigError if there are errors."""
        if self.errors:
            raise ConfigError(self.errors[0])


def look(config: RunConfig, devices: int, elsewhere: Mapping[str, Path] | None = None, fetch: bool = False) -> Findings:
    """`check` with whatever lies on this machine: manifests, the model's shape, tokenizers. What lies elsewhere isn't asked for.

    Args:
      elsewhere: by the path of a shard set that isn't here, a directory that holds a copy of its manifest.
      fetch: also compare a tokenizer that is on the hub.
    """
    found, sets = Findings(), dict[str, Manifest]()
    for path in config.shard_paths().values():
        directory = (elsewhere or {}).get(path, Path(path))
        if (directory / "manifest.json").is_file():
            try:
                sets[path] = Manifest.load(directory)
            except UserError as error:
                found.errors.append(str(error))
    try:
        shape = _shape(config)
    except UserError as error:
        found.errors.append(str(error))
        shape = None
    rest = check(config, devices, sets, shape)
    name = config.data.tokenizer or config.model.path
    if name is not None and (fetch or Path(name).exists()):
        found.errors += tokenizer_problems(name, sets)
    return Findings(found.errors + rest.errors, rest.warnings)


def check(config: RunConfig, devices: int, sets: Mapping[str, Manifest], model: ModelConfig | None) -> Findings:
    """What doesn't go together.

    Args:
      devices: of the mesh.
      sets: the manifests that are known, by directory.
      model: None: its shape isn't known.
    """
    found = Findings([problem] if (problem := place_problem("run_dir", config.run_dir)) else [])
    try:
        found.errors += row_problems(config, mesh_shape(config.mesh, devices))
    except ConfigError as error:
        found.errors.append(str(error))
    found.errors += _data_problems(config, sets, model)
    found.warnings += _intervals(config, sets)
    try:
        found.warnings += _ranks(config, model)
    except ConfigError as error:
        found.errors.append(str(error))
    return found


def place_problem(key: str, path: str) -> str:
    """What is wrong with a place to write to, which `key` names: it must be of its own, and no directory that holds other runs, or all else."""
    scheme, remote, there = path.partition("://")
    bucket, _, folder = there.partition("/")
    if remote:
        remedy = f"give a folder of its own, e.g. {scheme}://{bucket or 'BUCKET'}/runs/NAME"
        return f"{key}={path} holds other things than one run: {remedy}" if folder.strip("/") in ("", "runs") else ""
    place, here = Path(path).expanduser().resolve(), Path.cwd()
    if place in (here, *here.parents, here / "runs"):
        return f"{key}={path} holds other things than one run: give a directory of its own, e.g. runs/NAME"
    return ""


def row_problems(config: RunConfig, mesh: Mapping[str, int]) -> Iterator[str]:
    """Batches that can't be cut evenly over a mesh (axis -> devices)."""
    ways = row_cuts(mesh)
    for name, stage in config.stages.items():
        if (size := stage.batch_rows // stage.accumulate) % ways:
            key = f"stages.{name}.batch_rows"
            remedy = f"{key}={-(-size // ways) * ways * stage.accumulate}"
            if stage.batch_rows % ways == 0:  # it is the microbatches that are too small
                pieces = stage.batch_rows // ways
                remedy = f"stages.{name}.accumulate={max(n for n in range(1, stage.accumulate) if pieces % n == 0)}"
            yield f"{key} / accumulate is {size}: it must be a multiple of data * fsdp * expert = {ways}, e.g. {remedy}"
    if config.eval_rows % ways:
        least = -(-config.eval_rows // ways) * ways
        yield f"eval_rows is {config.eval_rows}: it must be a multiple of data * fsdp * expert = {ways}, e.g. eval_rows={least}"


def check_rows(config: RunConfig, mesh: Mapping[str, int]) -> None:
    """Refuse batches that can't be cut evenly over a mesh (axis -> devices).

    Raises:
      ConfigError: naming the key and the number that it must be a multiple of.
    """
    Findings(list(row_problems(config, mesh))).raise_first()


def check_length(shards: str, manifest: Manifest, model: str, shape: ModelConfig) -> None:
    """Refuse shards with sequences that are longer than a model was made for; `shards` and `model` are how errors call them."""
    if manifest.longest_path > shape.max_positions:
        raise ConfigError(
            f"{shards} holds sequences of {manifest.longest_path} tokens, {model} was made for {shape.limit}: "
            f"build the shards with --row-tokens {shape.max_positions}, which drops them"
        )


def steps_of(stage: StageConfig, train_rows: int) -> int:
    """A stage's optimizer steps, of a train split (of several sets: all together) of so many rows."""
    if stage.steps is not None:
        return stage.steps
    assert stage.epochs is not None
    return max(1, math.ceil(stage.epochs * train_rows / stage.batch_rows))


def tokenizer_problems(name: str, sets: Mapping[str, Manifest]) -> Iterator[str]:
    """Shard sets that were built with another tokenizer than the one that `name` stands for."""
    try:
        ours = tokenizer.load(name).sha256 if sets else None
    except UserError as error:
        yield str(error)
        return
    for path, manifest in sets.items():
        if manifest.tokenizer_sha256 != ours:
            yield other_tokenizer(path, name)


def other_tokenizer(path: str, name: str) -> str:
    """What is wrong with a shard set of another tokenizer than the one that `name` stands for."""
    return f"{path} was built with another tokenizer than {name}: rebuild it with `lpo-data build ... --tokenizer {name}`, or correct data.tokenizer"


def _shape(config: RunConfig) -> ModelConfig | None:
    """The model's config, if it stands here."""
    source = config.model
    if source.new is not None:
        return source.new
    if source.shape is None and not (source.path and Path(source.path).is_dir()):
        return None
    from lpo_jax.model import hf  # here: it takes its time

    return hf.planned_config(source)


def _data_problems(config: RunConfig, sets: Mapping[str, Manifest], model: ModelConfig | None) -> Iterator[str]:
    own = sets.get(config.data.path)
    if own is not None and model is not None:
        if own.vocab_size > model.vocab_size:
            yield (
                f"the shards' tokenizer has {own.vocab_size} entries, the model's vocabulary {model.vocab_size}: "
                "set model.new.vocab_size, or build the shards with the model's own tokenizer"
            )
        yield from _said(partial(check_length, config.data.path, own, "the model", model))
    for name, stage in config.stages.items():
        for one in config.shard_sets(name).values():
            if (manifest := sets.get(one.path)) is None:
                continue
            record, options = objectives.of(stage.objective), stage.objective
            where = f"stages.{name} on {one.path}: "
            yield from _said(partial(record.check_data, options, manifest), where)
            if model is not None:
                yield from _said(partial(check_length, "the set", manifest, "the model", model), where)
            if not manifest.splits["train"]["rows"]:
                yield f"{where}the train split is empty; build the set with a smaller --heldout"


def _said(check: Callable[[], None], where: str = "") -> Iterator[str]:
    try:
        check()
    except ConfigError as error:
        yield f"{where}{error}"


def _ranks(config: RunConfig, model: ModelConfig | None) -> Iterator[str]:
    if config.model.lora is None or model is None:
        return
    from lpo_jax.model.adapters import narrower  # here: it takes its time
    from lpo_jax.model.decoder import Model

    if found := narrower(Model(model), config.model.lora):
        listed = ", ".join(f"{path} ({side})" for path, side in found.items())
        yield (
            f"model.lora.rank is {config.model.lora.rank}, more than the smaller side of {listed}: what is above it is paid for and changes nothing; "
            "lower it, or leave these out of model.lora.targets"
        )


def _intervals(config: RunConfig, sets: Mapping[str, Manifest]) -> Iterator[str]:
    """Intervals that no step of a stage completes."""
    lengths = dict[str, int]()
    for name, stage in config.stages.items():
        found = [sets.get(one.path) for one in config.shard_sets(name).values()]
        rows = [manifest.splits["train"]["rows"] for manifest in found if manifest is not None]
        if stage.steps is not None or len(rows) == len(found):
            lengths[name] = steps_of(stage, sum(rows))
    told = {
        "eval_every_steps": ("held-out metrics are taken only before and after", ", or 0 if that is meant"),
        "checkpoint_every_steps": ("nothing is saved before the end of", ""),
    }
    for key, (what, otherwise) in told.items():
        every = getattr(config, key)
        short = {name: steps for name, steps in lengths.items() if 1 < steps <= every}
        if short:
            stages = " and ".join(f"stage {name} ({steps} steps)" for name, steps in short.items())
            yield f"{key} is {every}: {what} {stages}; e.g. {key}={max(1, min(short.values()) // 4)}{otherwise}"
    if silent := [f"stage {name} ({steps} steps)" for name, steps in lengths.items() if steps < config.log_every_steps]:
        yield f"log_every_steps is {config.log_every_steps}: metrics.jsonl has no line of {' and '.join(silent)}; e.g. log_every_steps=1"
    total = sum(lengths.values()) if len(lengths) == len(config.stages) else math.inf
    if config.profile is not None and total < config.profile.start:
        yield f"profile.start is {config.profile.start}: the run has {total} steps, and no trace is written; e.g. profile.start={min(10, total)}"
