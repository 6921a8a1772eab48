"""The teacher of a `kd` stage: a model that runs inside the step, or its most probable tokens, computed before (`lpo teacher`).

What was computed before lies in a directory with teacher.json, see `lpo_jax.train.per_token`.

Dims: K tokens kept of each distribution; B rows and N scored tokens of a batch.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.sharding import Mesh

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
from lpo_jax.tensors import on_host
from lpo_jax.train import per_token
from lpo_jax.train.distributed import all_or_none, first
from lpo_jax.train.placement import my_rows, to_devices
from lpo_jax.train.preflight import check_length, check_rows
from lpo_jax.train.state import param_shardings
from lpo_jax.train.step import Teacher, output

if TYPE_CHECKING:
    from data_pipeline.feed import Feed

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
    remedy = "give a Hugging Face directory, a hub id, or what `lpo teacher` has written"
    shape = hf.planned_config(ModelSource(path=path), f"stages.{stage}.objective.kl.teacher", remedy)
    vocab = min(shape.vocab_size, hf.planned_config(config.model).vocab_size) if manifest is None else manifest.vocab_size
    if shape.vocab_size < vocab:
        raise ConfigError(
            f"stages.{stage}.objective.kl.teacher: {path} knows {shape.vocab_size} tokens, the shards' tokenizer has {vocab}: "
            "a teacher shares the student's tokenizer, or one that begins with it"
        )
    if manifest is not None:
        check_length(f"the data of stage {stage}", manifest, f"the teacher {path}", shape)
    return Teacher(vocab, 0, Model(shape, config.model.compute_dtype, config.model.compute_dtype, attention=config.model.attention))


def load(teacher: Model, objective: FrozenOptions, mesh: Mesh) -> Params:
    """The parameters of a teacher that runs in the step."""
    return hf.read_params(hf.locate(path_of(objective)), teacher, param_shardings(teacher, mesh))


def join(batches: Iterable[PackedRows], rows: Iterable[np.ndarray], objective: FrozenOptions) -> Iterator[TreeBatch]:
    """Batches with what was computed of them; `rows` are those of the train split that each holds."""
    path = Path(path_of(objective))
    key = per_token.key_of(read_json(path / _FACTS))
    for batch, columns in per_token.join(
        batches, rows, path, key, lambda batch: np.asarray(answer_side(TreeBatch.of(batch), objective.score_prompt))
    ):
        yield TreeBatch.of(batch, TeacherTop(**columns))  # type: ignore[arg-type]  # numpy's, until they are on devices


def write(config: RunConfig, stage: str, data: "Feed", out: str | Path, k: int) -> None:
    """Run a stage's teacher over the train split and keep the `k` most probable tokens in the place of each that the stage scores.

    Goes on where it was stopped. All processes call it together; the teacher is cut over their devices as `config.mesh` says.

    Raises:
      ConfigError: the teacher or `k` doesn't fit, `out` is another job's, or it can't be written.
    """
    objective, out = taught(config, stage), Path(out)
    teacher = open_teacher(config, stage, data.manifest)
    if objective is None or teacher is None or teacher.model is None:
        raise ConfigError(f"stages.{stage}: nothing to compute; give a stage of objective kd whose kl.teacher is a model")
    model, vocab = teacher.model, teacher.vocab_size
    check_top_k(k, data.manifest)
    mesh, total = make_mesh(config.mesh), data.rows("train")
    check_rows(config, mesh.shape)
    job = {
        "model": path_of(objective),
        "dtype": config.model.compute_dtype,
        "shards": per_token.hash_of(data.manifest),
        "rows": total,
        "vocab_size": vocab,
        "top_k": k,
        "score_prompt": objective.score_prompt,
    }

    with ExitStack() as held, jax.set_mesh(mesh):
        with all_or_none():
            if first():
                held.enter_context(files.hold_directory(out))
            out.mkdir(parents=True, exist_ok=True)  # the other processes' disks may be others
            if differ := files.differing(out / _FACTS, job):
                raise ConfigError(
                    f"{out} holds what another job computed (other {', '.join(differ)}); choose another directory, or delete it"
                )
        params = load(model, objective, mesh)
        top = jax.jit(
            lambda params, batch: (
                answer_side(batch, objective.score_prompt),
                divergence.top(output(model, params, {}, batch), batch, k, vocab),
            )
        )

        def compute(batch: PackedRows) -> tuple[np.ndarray, dict[str, np.ndarray]]:
            scored, found = on_host(top(params, to_devices(batch, mesh, config.eval_rows)))
            return scored, {
                "ids": found.ids,
                "logps": found.logps.astype(np.float32),
                "rest": found.rest.astype(np.float32),
            }

        def batches(start: int) -> Iterator[PackedRows]:
            return data.in_order("train", config.eval_rows, my_rows(mesh, config.eval_rows), start)

        per_token.write(out, total, batches, compute, per_token.key_of(job), "teacher", (_FACTS, job))


def check_top_k(k: int, manifest: Manifest) -> None:
    """Refuse to keep more tokens of each place than the shards' tokenizer has."""
    if not 0 < k <= manifest.vocab_size:
        raise ConfigError(f"--top-k must lie between 1 and the tokenizer's {manifest.vocab_size} entries, not {k}")


def facts(path: str | Path) -> Json | None:
    """What was computed before, and lies in `path`; None: the path is a model's."""
    file = Path(path) / _FACTS
    return read_json(file) if file.is_file() else None


def _check(computed: Json, path: str, manifest: Manifest, objective: FrozenOptions) -> None:
    """Refuse log-probabilities of other tokens than the stage scores."""
    if computed["shards"] != per_token.hash_of(manifest):
        raise ConfigError(
            f"{path} was computed of other shards than the stage is trained on: run `lpo teacher` again, into another directory"
        )
    if computed["score_prompt"] != objective.score_prompt:
        raise ConfigError(f"{path} was computed with score_prompt {computed['score_prompt']}, the stage has {objective.score_prompt}")
    if missing := per_token.unsound(Path(path), computed["rows"], per_token.key_of(computed)):
        count = -(-computed["rows"] // per_token.BLOCK_ROWS)
        raise ConfigError(
            f"{path} is unfinished: {len(missing)} of {count} files are missing or damaged; repeat the `lpo teacher` that wrote it"
        )


def taught(config: RunConfig, stage: str) -> FrozenOptions | None:
    """A stage's objective, if a teacher belongs to it."""
    objective = config.stages[stage].objective
    return objective if isinstance(objective, FrozenOptions) and objectives.of(objective).frozen == "teacher" else None


def path_of(objective: FrozenOptions) -> str:
    """Where the teacher is."""
    assert objective.kl.teacher is not None
    return objective.kl.teacher
