"""A whole training run, top to bottom: checks, resume, stages, report."""

import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from lpo_jax import teacher as teachers
from lpo_jax.config import ConfigError, MeshConfig, RunConfig, StageConfig, to_dict
from lpo_jax.model import hf, lora
from lpo_jax.model.decoder import Model, Params
from lpo_jax.objectives import Terms, check_data
from lpo_jax.sharding import make_mesh
from lpo_jax.train import checkpoint, run_dir
from lpo_jax.train import state as steps
from lpo_jax.train.checkpoint import Checkpoints, Progress
from lpo_jax.train.distributed import all_or_none
from lpo_jax.train.evaluate import evaluate, read_summary, write_evaluation
from lpo_jax.train.metrics import ENGLISH, MetricLog, fetch, means, write_atomically
from lpo_jax.train.report import write_report
from lpo_jax.train.rows import Data, my_rows, to_devices
from lpo_jax.train.state import TrainState
from lpo_jax.train.stop import Preempted, StopRequest, TrainingError


def train(config: RunConfig, data: Data, decode: Callable[[int], str]) -> dict[str, dict[str, float]]:
    """Run every stage of `config`, or what is left of them, and return the summary.

    Running the same config again goes on from the last checkpoint, also with other devices and another number of processes; a finished
    run is only reported again. With several processes, all call it together.

    Args:
      decode: a token id's text, for the report.

    Raises:
      ConfigError: config, data and run directory don't fit together.
      Preempted: SIGTERM or SIGINT came, and a checkpoint is saved.
      TrainingError: the loss stays not finite, or checkpoints can't be read or written.
    """
    # --- Check everything that can be known before the first step.
    manifest = data.manifest
    with all_or_none():
        mesh, model = make_mesh(config.mesh), open_model(config)
        _check_fit(config, manifest, model, mesh)
        taught = {name: teachers.open_teacher(config, name, manifest) for name in config.stages}
        target = _abstract_state(config, model, mesh)
    directory = run_dir.claim(config, manifest, sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(target)))

    with jax.set_mesh(mesh), StopRequest() as stop:
        # --- Resume: the newest checkpoint, else the model's own weights.
        resumed = checkpoint.restore(directory, target)
        done, state = resumed or (None, None)
        if done and done.data_key != manifest.build_key:
            raise ConfigError(
                f"{directory}: its checkpoints were trained on other shards than {config.data.path} holds now; "
                "choose a new run_dir, or delete the directory to start again"
            )
        checkpoints = Checkpoints(directory, config, done.total_step if done else -1)
        metrics = MetricLog(directory, done.total_step if done else 0)
        heldout = partial(evaluate, steps.make_eval_step(model, mesh), mesh, data, config, decode)
        params, frozen = load_params(config, model, mesh) if done is None or model.lora else ({}, {})
        if done is None:
            write_evaluation(directory, "init", *heldout(params, frozen, draw=config.report_pairs))

        # --- The stages, each with a fresh optimizer.
        names, total = list(config.stages), 0
        for index, (name, stage) in enumerate(config.stages.items()):
            length = _stage_steps(stage, data.rows("train"))
            if done and names.index(done.stage) > index:
                total += length
                continue
            tx = steps.optimizer(stage.optim, length)
            if state is None:
                shardings = steps.state_shardings(model, tx, mesh)
                state = jax.jit(partial(steps.new_state, tx=tx), out_shardings=shardings, donate_argnums=0)(params)
            teacher = taught[name]
            train_step = steps.make_train_step(model, stage.objective, tx, mesh, config.seed + index, teacher)
            known = frozen | teachers.load(teacher, stage.objective, mesh)
            start, mine = int(state.step), my_rows(mesh, stage.batch_rows, stage.accumulate)
            batches = data.batches(stage.batch_rows, start, length, index, mine)
            if teacher is not None and teacher.top_k:
                rows = (data.step_rows(stage.batch_rows, step, index)[mine] for step in range(start, length))
                batches = teachers.join(batches, rows, stage.objective)
            bar = tqdm(batches, name, length, initial=start, unit="step", dynamic_ncols=True, disable=jax.process_index() > 0)
            step_log = _StepLog(config, directory, data, metrics, bar, name, length, total)
            for step, batch in enumerate(bar, start + 1):
                state, terms = train_step(state, known, to_devices(batch, mesh, stage.batch_rows, stage.accumulate))
                stopping = stop.reached(total + step)
                checkpoints.check()
                step_log.add(step, terms)
                evaluating = bool(config.eval_every_steps) and step % config.eval_every_steps == 0 and step < length
                saving = stopping or (step % config.checkpoint_every_steps == 0 and step < length)
                if evaluating or saving:
                    step_log.flush()
                measured: dict[str, float] = {}
                if evaluating:
                    measured, _ = heldout(state.params, frozen)
                    metrics.write(name, step, total + step, measured, group="heldout")
                if saving:
                    metrics.sync()
                    checkpoints.save(state, Progress(name, step, total + step, manifest.build_key, to_dict(config)), measured)
                if stopping:
                    checkpoints.close()
                    raise Preempted(f"asked to stop: stage {name} is saved after step {step} in {directory}")
            step_log.flush()
            bar.close()
            total += length
            measured, pairs = heldout(state.params, frozen, draw=config.report_pairs)
            write_evaluation(directory, name, measured, pairs)
            metrics.sync()
            checkpoints.save(state, Progress(name, length, total, manifest.build_key, to_dict(config)), measured)
            params, state, known = state.params, None, frozen  # moments and teacher are free before the next stage's are made

        # --- Wind up.
        checkpoints.close()
        metrics.close()
    summary = read_summary(directory, config)
    if jax.process_index() == 0:
        write_atomically(directory / "summary.json", json.dumps(summary | {"names": ENGLISH}, indent=2) + "\n")
        write_report(directory, to_dict(config), summary)
    return summary


def open_model(config: RunConfig) -> Model:
    """The model that a run's config describes, without its weights."""
    source = config.model
    return Model(hf.shape(source), source.compute_dtype, source.param_dtype, source.remat, source.lora)


def load_params(config: RunConfig, model: Model, mesh: Mesh) -> tuple[Params, Params]:
    """What is trained and what is frozen, sharded. Without LoRA: (parameters, {}); with it: (new adapters, parameters).

    The parameters are read from model.path, or random.
    """
    key = jax.random.key(config.seed)
    shardings = steps.param_shardings(model, mesh)
    if config.model.path is not None:
        params = hf.read_params(hf.locate(config.model.path), model, shardings)
    else:
        params = jax.jit(model.init, out_shardings=shardings)(key)
    if config.model.adapter is not None:
        earlier, settings = lora.load_peft(config.model.adapter, model)
        params = jax.jit(partial(lora.merge, config=settings), out_shardings=shardings, donate_argnums=0)(params, earlier)
    if model.lora is None:
        return params, {}
    adapters = jax.jit(partial(lora.init, model=model, config=model.lora), out_shardings=steps.trainable_shardings(model, mesh))
    return adapters(key), params


def restore_params(path: str | Path, config: RunConfig, mesh: Mesh | None = None, best: bool = False) -> tuple[Model, Params, Params]:
    """A run's model with what it trained, and what is frozen; cut over `mesh`, or all devices that are here.

    From its newest checkpoint, or with `best` from the one with the best `config.best_metric`.

    Raises:
      ConfigError: the run has no checkpoint yet.
      TrainingError: none can be read.
    """
    mesh, model = mesh or make_mesh(MeshConfig(data=1, fsdp=-1)), open_model(config)
    found = checkpoint.restore(epath.Path(path), _abstract_state(config, model, mesh), config.best_metric if best else None)
    if found is None:
        raise ConfigError(f"{path}: no checkpoint; run `lpo train` first")
    return model, found[1].params, load_params(config, model, mesh)[1] if model.lora else {}


def _check_fit(config: RunConfig, manifest: Any, model: Model, mesh: Mesh) -> None:
    """Refuse objectives, data, model and mesh that don't go together."""
    for stage in config.stages.values():
        check_data(stage.objective, manifest.trimmed, manifest.scores_prompt, manifest.plain)
    if manifest.vocab_size > model.config.vocab_size:
        raise ConfigError(
            f"the shards' tokenizer has {manifest.vocab_size} entries, the model's vocabulary {model.config.vocab_size}: "
            "set model.new.vocab_size, or build the shards with the model's own tokenizer"
        )
    if manifest.longest_path > model.config.max_positions:
        raise ConfigError(
            f"{config.data.path} holds sequences of {manifest.longest_path} tokens, the model was made for {model.config.max_positions}: "
            f"build the shards with --row-tokens {model.config.max_positions}, which drops them"
        )
    steps.check_rows(config, mesh)


def _stage_steps(stage: StageConfig, rows: int) -> int:
    if stage.steps is not None:
        return stage.steps
    assert stage.epochs is not None
    return max(1, math.ceil(stage.epochs * rows / stage.batch_rows))


def _abstract_state(config: RunConfig, model: Model, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state; they are the same in all stages."""
    tx = steps.optimizer(next(iter(config.stages.values())).optim, 1)
    shapes = jax.eval_shape(partial(steps.new_state, tx=tx), steps.trainable_shapes(model))
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, steps.state_shardings(model, tx, mesh))


class _StepLog:
    """Logs a stage's steps. Step n's numbers are read only when step n + 1 is under way, so that the device never waits for the host.

    Raises TrainingError when `max_skipped_steps` in a row were not finite.
    """

    def __init__(
        self, config: RunConfig, directory: epath.Path, data: Data, metrics: MetricLog, bar: tqdm, name: str, length: int, total: int
    ):
        self._config, self._directory, self._data, self._metrics, self._bar = config, directory, data, metrics, bar
        self._name, self._total = name, total
        self._stage = config.stages[name]
        # Computed now: while a step is under way nothing else is started on the devices.
        self._lr = np.asarray(steps.learning_rate(self._stage.optim, length)(np.arange(length)))
        self._pending: tuple[int, Terms] | None = None
        self._read = time.perf_counter()

    def add(self, step: int, terms: Terms) -> None:
        self.flush()
        self._pending = step, terms

    def flush(self) -> None:
        if self._pending is None:
            return
        (step, terms), self._pending = self._pending, None
        values = means(fetch(terms))
        now = time.perf_counter()
        seconds, self._read = now - self._read, now
        tokens, in_row = values.pop("tokens"), int(values.pop("skipped_in_row"))
        applied = step - int(values["skipped_steps"])  # the schedule counts these
        values |= {"lr": float(self._lr[max(applied - 1, 0)]), "tokens_per_s": tokens / max(seconds, 1e-9)}
        if step % self._config.log_every_steps == 0:
            self._metrics.write(self._name, step, self._total + step, values)
        shown = {"loss": values.get("loss"), "acc": values.get("rewards/accuracies"), "margin": values.get("rewards/margins")}
        rate = {"tok/s": f"{values['tokens_per_s']:.0f}"}
        self._bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items() if v is not None} | rate, refresh=False)
        if in_row >= self._config.max_skipped_steps:
            self._metrics.sync()
            raise TrainingError(
                f"stage {self._name}: loss or gradient of the last {in_row} steps up to step {step} is not finite; nothing was changed by them. "
                f"Their rows and pairs are listed in {self._list_skipped(step, in_row)}. Look at them, or lower stages.{self._name}.optim.lr and "
                "train into a new run_dir"
            )

    def _list_skipped(self, last: int, count: int) -> epath.Path:
        """Write which rows of the train split, and pairs, the steps up to `last` read."""
        file, stream = self._directory / "skipped_rows.json", list(self._config.stages).index(self._name)
        if jax.process_index() == 0:
            listed = []
            for step in range(last - count + 1, last + 1):
                rows = self._data.step_rows(self._stage.batch_rows, step - 1, stream).tolist()
                listed.append({"step": step, "rows": [{"row": row, "pairs": self._data.pair_ids("train", row)} for row in rows]})
            write_atomically(file, json.dumps({"stage": self._name, "steps": listed}, indent=1) + "\n")
        return file
