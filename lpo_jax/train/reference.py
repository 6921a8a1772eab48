"""The reference of a stage: the model as it was when the stage began (e.g. after SFT), with which DPO and its kin compare the trained one.

It runs inside the step, or its log-probabilities are computed when the stage begins and lie in the directory `objective.reference` (see
`lpo_jax.train.per_token`). A run that is resumed needs the same reference: run_dir/reference/STAGE.json holds its fingerprint. Beside it lies
a copy, but of a first stage's, which is loaded again: what lies in `objective.reference` may be gone with a machine.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_pipeline.row import PackedRows
from data_pipeline.shards import Manifest
from foundation import files
from foundation.files import Json, read_object, write_json
from lpo_jax import objectives
from lpo_jax.batch import TreeBatch
from lpo_jax.config import ConfigError, RunConfig
from lpo_jax.model.decoder import Model, Params
from lpo_jax.objectives.base import ReferenceOptions
from lpo_jax.tensors import on_host
from lpo_jax.train import per_token
from lpo_jax.train.distributed import all_or_none
from lpo_jax.train.placement import my_rows, to_devices
from lpo_jax.train.run_dir import reason
from lpo_jax.train.state import abstract, batch_sharding, fingerprint, frozen_shardings, trainable_shapes, trainable_shardings
from lpo_jax.train.step import Reference, forward
from lpo_jax.train.stop import CheckpointError, TrainingError
from lpo_jax.train.weights import load_params

if TYPE_CHECKING:
    from data_pipeline.feed import Feed

_FACTS = "reference.json"
_OWN = re.compile(r"reference\.json.*|rows-\d+\.safetensors.*|\.lock")
FOLDER = "reference"
"""Of a run's directory."""


@dataclass(frozen=True)
class Origin:
    """The stage that a reference belongs to."""

    run: RunConfig
    stage: str
    model: Model
    mesh: Mesh
    data: "Feed"
    run_dir: epath.Path

    @property
    def first(self) -> bool:
        """Whether the run begins with this stage."""
        return self.stage == next(iter(self.run.stages))

    @property
    def directory(self) -> Path:
        """Where log-probabilities are kept."""
        return _directory(self.run, self.stage)

    @property
    def facts(self) -> epath.Path:
        return self.run_dir / FOLDER / f"{self.stage}.json"

    @property
    def copy(self) -> epath.Path:
        """Where a copy of what was trained when the stage began is kept."""
        return (self.run_dir / FOLDER / self.stage).absolute()


def open_reference(config: RunConfig, stage: str, manifest: Manifest | None) -> Reference | None:
    """Where a stage's reference is while the stage runs; None: it has none.

    Args:
      manifest: the shards', or None where they aren't built yet (`lpo plan`).

    Raises:
      ConfigError: the directory `objective.reference` can't be used, or holds what was computed of other shards, or with another tokenizer.
    """
    objective = config.stages[stage].objective
    if objectives.of(objective).frozen != "reference":
        return None
    assert isinstance(objective, ReferenceOptions)
    if objective.reference is not None:
        if manifest is not None:
            _check_directory(config, stage)
            _refuse_others(config, stage, manifest)
        return Reference("batch")
    return Reference("base" if config.model.lora and stage == next(iter(config.stages)) else "frozen")


def start(origin: Origin, beside: Reference, params: Params, frozen: Params) -> Params:
    """Take the reference from what a stage starts with; returns what `frozen` gets. All processes call it together.

    Raises:
      ConfigError: `objective.reference` holds another reference's log-probabilities, or can't be written.
      CheckpointError: the copy can't be written.
    """
    mark = _mark(origin.model, params, frozen)
    if not origin.first:
        try:
            with ocp.StandardCheckpointer() as writer:
                writer.save(origin.copy, params, force=True)
        except Exception as error:
            raise CheckpointError(
                f"the reference of stage {origin.stage} couldn't be written to {origin.run_dir}: {reason(error)}"
            ) from error
    if jax.process_index() == 0:
        write_json(origin.facts, {"fingerprint": mark})
    if beside.where == "batch":
        _compute(origin, params, frozen, mark)
    if beside.where != "frozen":
        return {}
    return {"reference": jax.jit(lambda x: jax.tree.map(jnp.copy, x))(params)}


def resume(origin: Origin, beside: Reference, frozen: Params) -> Params:
    """What `frozen` gets in a stage that has begun before. All processes call it together.

    Raises:
      TrainingError, ConfigError: the reference that the stage began with isn't there any more; with the remedy.
    """
    if beside.where == "base":
        return {}
    with all_or_none():
        if not origin.facts.exists():
            raise TrainingError(f"{origin.facts}: no such file; copy it back, or start again in another run_dir")
        mark = str(read_object(origin.facts, "delete the run's directory to start again").get("fingerprint"))
    if beside.where == "batch":
        with all_or_none():
            _check_directory(origin.run, origin.stage)
            _refuse_others(origin.run, origin.stage, origin.data.manifest, mark)
        key = per_token.key_of(_job(origin.run, origin.data.manifest, mark))
        if not per_token.missing(origin.directory, origin.data.rows("train"), key):
            return {}
    params = _begun_with(origin, frozen, mark)
    if beside.where == "batch":
        _compute(origin, params, frozen, mark)
        return {}
    return {"reference": params}


def _begun_with(origin: Origin, frozen: Params, mark: str) -> Params:
    """What was trained when the stage began: the first stage's is loaded again, a later one's is the copy.

    Raises:
      TrainingError: it isn't there, or isn't the same.
    """
    if origin.first:
        params, where = load_params(origin.run, origin.model, origin.mesh)[0], origin.run.model.path
    else:
        where = str(origin.copy)
        shapes = abstract(trainable_shapes(origin.model), trainable_shardings(origin.model, origin.mesh))
        try:
            with ocp.StandardCheckpointer() as reader:
                params = reader.restore(origin.copy, shapes)
        except Exception as error:
            raise TrainingError(f"{where}: the reference can't be read: {reason(error)}; copy it back, or start again elsewhere") from error
    if _mark(origin.model, params, frozen) != mark:
        raise TrainingError(f"{where} isn't the model that stage {origin.stage} began with; restore it, or start again in another run_dir")
    return params


def join(batches: Iterator[PackedRows], rows: Iterator[np.ndarray], config: RunConfig, stage: str) -> Iterator[TreeBatch]:
    """Batches with the reference's log-probabilities; `rows` are those of the train split that each holds."""
    directory = _directory(config, stage)
    key = per_token.key_of(_facts(directory))
    for batch, columns in per_token.join(batches, rows, directory, key, lambda batch: np.asarray(batch.pair) >= 0):
        yield TreeBatch.of(batch, reference=columns["logps"])


def forget(run_dir: epath.Path) -> None:
    """Delete the copies of a finished run, which fill its `FOLDER`: no log-probabilities may lie there."""
    if jax.process_index() == 0 and (run_dir / FOLDER).exists():
        (run_dir / FOLDER).rmtree()


def _compute(origin: Origin, params: Params, frozen: Params, mark: str) -> None:
    """Write the log-probabilities of the train split's scored tokens, or those that aren't there yet."""
    directory, model, mesh = origin.directory, origin.model, origin.mesh
    total, rows = origin.data.rows("train"), origin.run.eval_rows
    with all_or_none():
        _check_directory(origin.run, origin.stage)
        _refuse_others(origin.run, origin.stage, origin.data.manifest, mark)
    replicated = NamedSharding(mesh, PartitionSpec())
    logps = jax.jit(
        lambda params, frozen, batch: (batch.pair >= 0, forward(model, params, frozen, batch)),
        in_shardings=(trainable_shardings(model, mesh), frozen_shardings(model, mesh), batch_sharding(mesh, accumulated=False)),
        out_shardings=replicated,
    )

    def compute(batch: PackedRows) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        scored, found = on_host(logps(params, frozen, to_devices(batch, mesh, rows)))
        return scored, {"logps": found}

    def batches(start: int) -> Iterator[PackedRows]:
        return origin.data.in_order("train", rows, my_rows(mesh, rows), start)

    job = _job(origin.run, origin.data.manifest, mark)
    per_token.write(directory, total, batches, compute, per_token.key_of(job), f"{origin.stage}, reference", (_FACTS, job))


def _job(config: RunConfig, manifest: Manifest, mark: str | None) -> Json:
    """What a directory's log-probabilities depend on."""
    return {
        "model": mark,
        "dtype": config.model.compute_dtype,
        "shards": per_token.hash_of(manifest),
        "tokenizer": manifest.tokenizer_sha256,
    }


def _facts(directory: Path) -> Json:
    """What a directory's log-probabilities are of; {}: none lie there."""
    return read_object(directory / _FACTS, _computed_again(directory))


def _computed_again(directory: Path) -> str:
    return f"delete {directory}: it is computed again"


def _check_directory(config: RunConfig, stage: str) -> None:
    """Make the directory, or raise ConfigError where log-probabilities can't or mustn't lie."""
    directory, key = _directory(config, stage), f"stages.{stage}.objective.reference"
    advice = "name a directory on this disk for log-probabilities alone, e.g. data/reference (the reference itself is the model at the stage's start)"
    if re.match(r"\w+:/", str(directory)):  # a Path has made one slash of two
        raise ConfigError(f"{key}: {directory} is a bucket; {advice}")
    if "://" not in config.run_dir and directory.absolute().is_relative_to(Path(config.run_dir, FOLDER).absolute()):
        raise ConfigError(f"{key}: {directory} is deleted when the run is finished; {advice}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise ConfigError(f"{key}: {directory} can't be used: {error.strerror}; {advice}") from None
    if other := next((name for name in found if not _OWN.fullmatch(name)), None):
        raise ConfigError(f"{key}: {directory} holds {other}; {advice}")


def _refuse_others(config: RunConfig, stage: str, manifest: Manifest, mark: str | None = None) -> None:
    """Raise ConfigError where the directory holds log-probabilities of another reference. `mark` None: nothing is known of the model yet."""
    directory = _directory(config, stage)
    unknown = ("model",) if mark is None else ()
    if differ := files.differing(directory / _FACTS, _job(config, manifest, mark), unknown, remedy=_computed_again(directory)):
        raise ConfigError(
            f"stages.{stage}.objective.reference: {directory} holds the log-probabilities of another reference (other {', '.join(differ)}); "
            "choose another directory, or delete it"
        )


def _mark(model: Model, params: Params, frozen: Params) -> str:
    """A hash of all that the model's log-probabilities depend on, but for the dtype that they are computed in."""
    bits = on_host(fingerprint({"params": params, "frozen": frozen}))
    return hashlib.sha256(f"{bits} {model.config} {model.lora}".encode()).hexdigest()[:16]


def _directory(config: RunConfig, stage: str) -> Path:
    objective = config.stages[stage].objective
    assert isinstance(objective, ReferenceOptions) and objective.reference is not None
    return Path(objective.reference)
