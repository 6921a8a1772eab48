"""A whole training run, top to bottom: mesh, model, data, resume, stages, report."""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

from lpo_jax.batch import TreeBatch, answer_tokens
from lpo_jax.config import ConfigError, MeshConfig, RunConfig, StageConfig, to_dict
from lpo_jax.model import hf, lora
from lpo_jax.model.decoder import Model, Params
from lpo_jax.objectives import Terms, check_data
from lpo_jax.sharding import make_mesh
from lpo_jax.train import state as steps
from lpo_jax.train.checkpoint import Checkpoints, Progress
from lpo_jax.train.metrics import ENGLISH, MetricLog, add, means, write_atomically
from lpo_jax.train.report import write_report
from lpo_jax.train.state import TrainState

log = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """A run that can't go on; the message says where it stands and what to do."""


class Data(Protocol):
    """What the loop needs of its data; `data_pipeline.feed.Feed` has it."""

    @property
    def manifest(self) -> Any: ...
    def rows(self, split: str) -> int: ...
    def batches(self, rows: int, start_step: int, stop_step: int, stream: int) -> Iterator[TreeBatch]: ...
    def heldout(self, rows: int) -> Iterator[TreeBatch]: ...
    def pair_ids(self, split: str, row: int) -> list[str]: ...


def train(config: RunConfig, data: Data, decode: Callable[[int], str]) -> dict[str, dict[str, float]]:
    """Run every stage of `config`, or what is left of them, and return the summary.

    Running the same config again goes on from the last checkpoint; a finished run is only reported again.

    Args:
      decode: a token id's text, for the report.

    Raises:
      ConfigError: config, data and run directory don't fit together.
      TrainingError: the loss is no longer finite.
    """
    # --- Check everything that can be known before the first step.
    manifest = data.manifest
    for stage in config.stages.values():
        check_data(stage.objective, manifest.trimmed, manifest.scores_prompt)

    # --- Mesh, model and shardings.
    mesh = make_mesh(config.mesh)
    model = open_model(config)
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
    run_dir = Path(config.run_dir)
    _claim(run_dir, config, manifest)

    with jax.set_mesh(mesh):
        # --- Resume: the newest checkpoint, else the model's own weights.
        checkpoints = Checkpoints(run_dir, config.keep_checkpoints)
        done = checkpoints.progress()
        if done and done.data_key != manifest.build_key:
            raise ConfigError(
                f"{run_dir}: its checkpoints were trained on other shards than {config.data.path} holds now; "
                "choose a new run_dir, or delete the directory to start again"
            )
        evaluate = partial(_evaluate, steps.make_eval_step(model, mesh), mesh, data, config, decode)
        metrics = MetricLog(run_dir, done.total_step if done else 0)
        params, frozen = load_params(config, model, mesh) if done is None or model.lora else ({}, {})
        if done is None:
            _finish_stage(run_dir, "init", evaluate(params, frozen, draw=config.report_pairs))

        # --- The stages, each with a fresh optimizer.
        names, total = list(config.stages), 0
        for index, (name, stage) in enumerate(config.stages.items()):
            length = _stage_steps(stage, data.rows("train"))
            if done and names.index(done.stage) > index:
                total += length
                continue
            tx = steps.optimizer(stage.optim, length)
            shardings = steps.state_shardings(model, tx, mesh)
            if done and done.stage == name:
                state = checkpoints.restore(_abstract_state(model, tx, shardings))
                params = state.params
            else:
                state = jax.jit(partial(steps.new_state, tx=tx), out_shardings=shardings, donate_argnums=0)(params)
            train_step = steps.make_train_step(model, stage.objective, tx, mesh, config.seed + index)
            start = int(state.step)
            batches = data.batches(stage.batch_rows, start, length, stream=index)
            bar = tqdm(batches, name, length, initial=start, unit="step", dynamic_ncols=True, disable=jax.process_index() > 0)
            clock, pending = _Clock(), None
            schedule = steps.learning_rate(stage.optim, length)
            for step, rows_read in enumerate(bar, start + 1):
                state, terms = train_step(state, frozen, _to_devices(rows_read, mesh, stage.accumulate))
                # Read step n's numbers only when step n + 1 is under way, so that the device never waits for the host.
                if pending:
                    _log_step(bar, metrics, config, clock, *pending)
                tokens = int((rows_read.positions > 0).sum()) * jax.process_count()  # all but padding and each tree's first
                pending = name, step, total + step, terms, float(schedule(step - 1)), tokens
                if step % config.checkpoint_every_steps == 0 and step < length:
                    _log_step(bar, metrics, config, clock, *pending)
                    pending = None
                    checkpoints.save(state, Progress(name, step, total + step, manifest.build_key, to_dict(config)))
                if config.eval_every_steps and step % config.eval_every_steps == 0 and step < length:
                    metrics.write(name, step, total + step, evaluate(state.params, frozen)[0], group="heldout")
            if pending:
                _log_step(bar, metrics, config, clock, *pending)
            bar.close()
            total += length
            params = state.params
            _finish_stage(run_dir, name, evaluate(params, frozen, draw=config.report_pairs))
            checkpoints.save(state, Progress(name, length, total, manifest.build_key, to_dict(config)))

        # --- Wind up.
        checkpoints.close()
        metrics.close()
    summary = read_summary(run_dir, config)
    if jax.process_index() == 0:
        write_atomically(run_dir / "summary.json", json.dumps(summary | {"names": ENGLISH}, indent=2) + "\n")
        write_report(run_dir, to_dict(config), summary)
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


def restore_params(run_dir: str | Path, config: RunConfig, mesh: Mesh | None = None) -> tuple[Model, Params, Params]:
    """A run's model with what it trained, from its newest checkpoint, and what is frozen; cut over `mesh`, or all devices that are here.

    Raises:
      ConfigError: the run has no checkpoint yet.
    """
    mesh, model = mesh or make_mesh(MeshConfig(data=1, fsdp=-1)), open_model(config)
    checkpoints = Checkpoints(Path(run_dir), config.keep_checkpoints)
    done = checkpoints.progress()
    if done is None:
        raise ConfigError(f"{run_dir}: no checkpoint; run `lpo train` first")
    tx = steps.optimizer(config.stages[done.stage].optim, done.step)
    state = checkpoints.restore(_abstract_state(model, tx, steps.state_shardings(model, tx, mesh)))
    checkpoints.close()
    return model, state.params, load_params(config, model, mesh)[1] if model.lora else {}


def read_summary(run_dir: Path, config: RunConfig) -> dict[str, dict[str, float]]:
    """Held-out metrics before training ("init") and after each stage."""
    return {name: json.loads((run_dir / "eval" / f"{name}.json").read_text())["metrics"] for name in ("init", *config.stages)}


def _claim(run_dir: Path, config: RunConfig, manifest: Any) -> None:
    """Make the run directory this config's, or check that it is."""
    file = run_dir / "config.json"
    mine = to_dict(config)
    if file.is_file():
        theirs = json.loads(file.read_text())
        # What may change without changing the parameters; the shards are compared by their content.
        free = {
            "run_dir",
            "data",
            "mesh",
            "plan",
            "log_every_steps",
            "checkpoint_every_steps",
            "keep_checkpoints",
            "eval_rows",
            "report_pairs",
        }
        differ = sorted(k for k in mine.keys() | theirs.keys() if k not in free and mine.get(k) != theirs.get(k))
        if differ:
            raise ConfigError(f"{run_dir} holds a run with another {', '.join(differ)}; choose a new run_dir, or delete the directory")
    elif jax.process_index() == 0:
        try:
            (run_dir / "eval").mkdir(parents=True, exist_ok=True)
            write_atomically(run_dir / "data.json", json.dumps(dataclasses.asdict(manifest), indent=2) + "\n")
            write_atomically(file, json.dumps(mine, indent=2) + "\n")
        except OSError as error:
            raise ConfigError(f"run_dir {run_dir} can't be written: {error.strerror}") from None


def _stage_steps(stage: StageConfig, rows: int) -> int:
    if stage.steps is not None:
        return stage.steps
    assert stage.epochs is not None
    return max(1, math.ceil(stage.epochs * rows / stage.batch_rows))


def _abstract_state(model: Model, tx: Any, shardings: TrainState) -> TrainState:
    shapes = jax.eval_shape(partial(steps.new_state, tx=tx), steps.trainable_shapes(model))
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _to_devices(batch: TreeBatch, mesh: Mesh, accumulate: int | None) -> TreeBatch:
    """This process's rows as its part of a global array; with `accumulate`, cut into [microbatches, rows, ...]."""
    sharding: NamedSharding = steps.batch_sharding(mesh, accumulate is not None)

    def put(x: np.ndarray) -> jax.Array:
        local = x if accumulate is None else x.reshape(accumulate, -1, *x.shape[1:])
        return jax.make_array_from_process_local_data(sharding, local)

    return jax.tree.map(put, batch)


class _Clock:
    """Seconds between readings."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


def _log_step(
    bar: tqdm, metrics: MetricLog, config: RunConfig, clock: _Clock, name: str, step: int, total: int, terms: Terms, lr: float, tokens: int
) -> None:
    values = means(terms)
    if not math.isfinite(values.get("loss", 0.0)) or not math.isfinite(values["grad_norm"]):
        raise TrainingError(
            f"stage {name}, step {step}: loss {values.get('loss')}, gradient norm {values['grad_norm']}; "
            f"{config.run_dir} keeps the last checkpoint. Lower stages.{name}.optim.lr and train into a new run_dir"
        )
    values |= {"lr": lr, "tokens_per_s": tokens / max(clock.lap(), 1e-9)}
    if step % config.log_every_steps == 0:
        metrics.write(name, step, total, values)
    shown = {"loss": values["loss"], "acc": values.get("rewards/accuracies"), "margin": values.get("rewards/margins")}
    bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items() if v is not None} | {"tok/s": f"{values['tokens_per_s']:.0f}"}, refresh=False)


def _evaluate(
    eval_step: Any, mesh: Mesh, data: Data, config: RunConfig, decode: Callable[[int], str], params: Params, frozen: Params, draw: int = 0
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Held-out metrics, and the first `draw` pairs with their tokens' log-probabilities, for the report."""
    total: Terms | None = None
    drawn: list[dict[str, Any]] = []
    for index, rows in enumerate(data.heldout(config.eval_rows)):
        terms, logps = eval_step(params, frozen, _to_devices(rows, mesh, None))
        total = jax.device_get(add(total, terms))
        if len(drawn) < draw:
            whole = jax.tree.map(lambda x: np.asarray(multihost_utils.process_allgather(x, tiled=True)), rows)
            drawn += _draw(whole, np.asarray(logps), data, index * config.eval_rows, decode)
    if total is None:
        log.warning("the shard set has no held-out split: nothing is evaluated")
        return {}, []
    return means(total), drawn[:draw]


def _draw(rows: TreeBatch, logps: np.ndarray, data: Data, first_row: int, decode: Callable[[int], str]) -> list[dict[str, Any]]:
    """The answer of every pair in a batch, token by token: text, side, changed or not, log-probability (None: not scored)."""
    drawn = []
    for r in range(min(len(rows.tokens), data.rows("heldout") - first_row)):
        for p, pair_id in enumerate(data.pair_ids("heldout", first_row + r)):
            tokens = [
                [decode(token), side, n is not None and bool(rows.changed[r, n]), None if n is None else float(logps[r, n])]
                for token, side, n in answer_tokens(rows, r, p)
            ]
            drawn.append({"id": pair_id, "tokens": tokens})
    return drawn


def _finish_stage(run_dir: Path, name: str, evaluated: tuple[dict[str, float], list[dict[str, Any]]]) -> None:
    if jax.process_index() == 0:
        result = {"metrics": evaluated[0], "pairs": evaluated[1]}
        write_atomically(run_dir / "eval" / f"{name}.json", json.dumps(result) + "\n")
        log.info("%s: %s", name, {k: round(v, 4) for k, v in evaluated[0].items()})
