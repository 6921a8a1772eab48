"""The teacher of a `kd` stage: a model that runs inside the step, or its most probable tokens, computed before (`lpo teacher`).

What was computed before lies in a directory. teacher.json says what was computed of what. Each `BLOCK_ROWS` rows of the train split have a
file, rows-00000.safetensors and so on. A file is there or not, never half, so `lpo teacher` can be stopped and repeated.

Dims: S scored tokens of all rows of a file, in the rows' order; K tokens kept of each distribution; B rows and N scored tokens of a batch.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from data_pipeline.row import PackedRows
from data_pipeline.shards import Manifest
from foundation import files
from foundation.files import Json, read_json
from lpo_jax import objectives
from lpo_jax.batch import TeacherTop, TreeBatch
from lpo_jax.config import ConfigError, ModelSource, RunConfig
from lpo_jax.losses import divergence
from lpo_jax.model import hf
from lpo_jax.model.decoder import Model, Params
from lpo_jax.objectives.base import FrozenOptions, answer_side
from lpo_jax.sharding import make_mesh
from lpo_jax.tensors import save_file
from lpo_jax.train.placement import to_devices
from lpo_jax.train.state import check_length, check_rows, param_shardings
from lpo_jax.train.step import Teacher, output

if TYPE_CHECKING:
    from data_pipeline.feed import Feed

BLOCK_ROWS = 256
_FACTS = "teacher.json"


def open_teacher(config: RunConfig, stage: str, manifest: Manifest | None) -> Teacher | None:
    """What a stage's step must know of its teacher; None: it has none. No weights are read.

    Args:
      manifest: the shards', or None where they aren't built yet (`lpo plan`).

    Raises:
      ConfigError: the teacher can't be found, is too small for the shards, or was run on others; with the remedy.
    """
    objective = taught(config, stage)
    if objective is None:
        return None
    path = path_of(objective)
    if (computed := facts(path)) is not None:
        if manifest is not None:
            _check(computed, path, manifest, objective)
        return Teacher(computed["vocab_size"], computed["top_k"])
    try:
        shape = hf.planned_config(ModelSource(path=path))
    except ConfigError as error:  # about a model: said of the teacher
        told = str(error).partition("; set model.shape")[0]
        raise ConfigError(told.replace("model.path", f"stages.{stage}.objective.kl.teacher")) from None
    vocab = min(shape.vocab_size, hf.planned_config(config.model).vocab_size) if manifest is None else manifest.vocab_size
    if shape.vocab_size < vocab:
        raise ConfigError(
            f"stages.{stage}.objective.kl.teacher: {path} knows {shape.vocab_size} tokens, the shards' tokenizer has {vocab}: "
            "a teacher shares the student's tokenizer, or one that begins with it"
        )
    if manifest is not None:
        check_length(f"the data of stage {stage}", manifest, f"the teacher {path}", shape.max_positions)
    return Teacher(vocab, 0, Model(shape, config.model.compute_dtype, config.model.compute_dtype))


def load(teacher: Model, objective: FrozenOptions, mesh: Mesh) -> Params:
    """The parameters of a teacher that runs in the step."""
    return hf.read_params(hf.locate(path_of(objective)), teacher, param_shardings(teacher, mesh))


def join(batches: Iterable[PackedRows], rows: Iterable[np.ndarray], objective: FrozenOptions) -> Iterator[TreeBatch]:
    """Batches with what was computed of them; `rows` are those of the train split that each holds."""
    directory = Path(path_of(objective))
    for batch, read in zip(batches, rows, strict=True):
        scored = _scored(batch, objective)
        columns: list[Any] = []
        for parts in zip(*(_read(directory, row) for row in read), strict=True):
            column = np.zeros((*scored.shape, *parts[0].shape[1:]), parts[0].dtype)
            column[scored] = np.concatenate(parts)
            columns.append(column)
        yield TreeBatch.of(batch, TeacherTop(*columns))


def write(config: RunConfig, stage: str, data: "Feed", out: str | Path, k: int) -> None:
    """Run a stage's teacher over the train split and keep the `k` most probable tokens in the place of each that the stage scores.

    Goes on where it was stopped. One process; the teacher is cut over its devices as `config.mesh` says.

    Raises:
      ConfigError: the teacher or `k` doesn't fit, `out` is another job's, or it can't be written.
    """
    objective, out = taught(config, stage), Path(out)
    teacher = open_teacher(config, stage, data.manifest)
    if objective is None or teacher is None or teacher.model is None:
        raise ConfigError(f"stages.{stage}: nothing to compute; give a stage of objective kd whose kl.teacher is a model")
    model, vocab = teacher.model, teacher.vocab_size
    if not 0 < k <= vocab:
        raise ConfigError(f"--top-k must lie between 1 and the tokenizer's {vocab} entries, not {k}")
    mesh, total = make_mesh(config.mesh), data.rows("train")
    check_rows(config, mesh)
    job = {
        "model": path_of(objective),
        "dtype": config.model.compute_dtype,
        "shards": _shards(data.manifest),
        "rows": total,
        "vocab_size": vocab,
        "top_k": k,
        "score_prompt": objective.score_prompt,
    }

    def refuse(differ: list[str]) -> ConfigError:
        return ConfigError(f"{out} holds what another job computed (other {', '.join(differ)}); choose another directory, or delete it")

    with files.hold_directory(out), jax.set_mesh(mesh):
        files.claim(out / _FACTS, job, refuse)
        params = load(model, objective, mesh)
        top = jax.jit(lambda params, batch: divergence.top(output(model, params, {}, batch), batch, k, vocab))

        def compute(batch: PackedRows) -> TeacherTop:
            return jax.device_get(top(params, to_devices(batch, mesh, config.eval_rows)))

        with tqdm(total=total, desc="teacher", unit=" rows", dynamic_ncols=True) as bar:
            for start in range(0, total, BLOCK_ROWS):
                size = min(BLOCK_ROWS, total - start)
                if not (file := _file(out, start)).exists():
                    _write_block(file, _block(compute, data.in_order("train", config.eval_rows, start_row=start), objective, size))
                bar.update(size)


def _block(
    compute: Callable[[PackedRows], TeacherTop], batches: Iterable[PackedRows], objective: FrozenOptions, size: int
) -> dict[str, np.ndarray]:
    """The tensors of one file: those of the first `size` rows of the batches."""
    counts, columns = [0], []
    for batch in batches:
        scored = _scored(batch, objective)[: size - len(counts) + 1]
        found = compute(batch)
        columns.append([np.asarray(x)[: len(scored)][scored] for x in (found.ids, found.logps, found.rest)])
        counts += scored.sum(1).tolist()
        if len(counts) > size:
            break
    ids, logps, rest = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return {"starts": np.cumsum(counts), "ids": ids.astype(np.int32), "logps": logps.astype(np.float32), "rest": rest.astype(np.float32)}


def _scored(batch: PackedRows, objective: FrozenOptions) -> np.ndarray:
    """The tokens that the stage scores: [B, N] bool."""
    return np.asarray(answer_side(TreeBatch.of(batch), objective.score_prompt))


def _write_block(file: Path, tensors: dict[str, np.ndarray]) -> None:
    try:
        with files.replaced(file) as unfinished:
            save_file(tensors, unfinished)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file} can't be written: {error}; what is finished stays, and the same command goes on from there") from None


def _read(directory: Path, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A row's ids [S, K], log-probabilities [S, K] and the log of the rest [S]."""
    with safe_open(_file(directory, row), framework="np") as tensors:
        start, stop = tensors.get_slice("starts")[row % BLOCK_ROWS : row % BLOCK_ROWS + 2]
        ids, logps, rest = (tensors.get_slice(name)[start:stop] for name in ("ids", "logps", "rest"))
    return ids, logps, rest


def _file(directory: Path, row: int) -> Path:
    return directory / f"rows-{row // BLOCK_ROWS:05d}.safetensors"


def facts(path: str | Path) -> Json | None:
    """What was computed before, and lies in `path`; None: the path is a model's."""
    file = Path(path) / _FACTS
    return read_json(file) if file.is_file() else None


def _check(computed: Json, path: str, manifest: Manifest, objective: FrozenOptions) -> None:
    """Refuse log-probabilities of other tokens than the stage scores."""
    if computed["shards"] != _shards(manifest):
        raise ConfigError(
            f"{path} was computed of other shards than the stage is trained on: run `lpo teacher` again, into another directory"
        )
    if computed["score_prompt"] != objective.score_prompt:
        raise ConfigError(f"{path} was computed with score_prompt {computed['score_prompt']}, the stage has {objective.score_prompt}")
    blocks = range(0, computed["rows"], BLOCK_ROWS)
    missing = [row for row in blocks if not _file(Path(path), row).is_file()]
    if missing:
        raise ConfigError(
            f"{path} is unfinished: {len(missing)} of {len(blocks)} files are missing; repeat the `lpo teacher` that wrote it"
        )


def _shards(manifest: Manifest) -> str:
    """A hash of the train split's content."""
    return hashlib.sha256("".join(shard["sha256"] for shard in manifest.splits["train"]["shards"]).encode()).hexdigest()


def taught(config: RunConfig, stage: str) -> FrozenOptions | None:
    """A stage's objective, if a teacher belongs to it."""
    objective = config.stages[stage].objective
    return objective if isinstance(objective, FrozenOptions) and objectives.of(objective).frozen == "teacher" else None


def path_of(objective: FrozenOptions) -> str:
    """Where the teacher is."""
    assert objective.kl.teacher is not None
    return objective.kl.teacher
