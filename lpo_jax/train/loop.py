"""A whole training run, top to bottom: checks, resume, stages, report."""

import logging
from contextlib import ExitStack, closing
from functools import partial

import jax
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from foundation.console import ticking
from foundation.files import write_json
from lpo_jax.config import ConfigError, RunConfig, to_dict
from lpo_jax.model import attention, hf
from lpo_jax.model.decoder import Params
from lpo_jax.objectives.heldout import ENGLISH
from lpo_jax.report.training import write_report
from lpo_jax.sharding import make_mesh
from lpo_jax.train import checkpoint, reference, run_dir, track
from lpo_jax.train.checkpoint import Checkpoints, Progress
from lpo_jax.train.data import check_fit, data_key, open_data, own_sets
from lpo_jax.train.distributed import all_or_none
from lpo_jax.train.evaluate import evaluate, read_summary, say, write_evaluation
from lpo_jax.train.metrics import MetricLog
from lpo_jax.train.profile import Profile
from lpo_jax.train.stage import Stage, open_beside
from lpo_jax.train.state import TrainState
from lpo_jax.train.step import make_eval_step
from lpo_jax.train.step_log import StepLog
from lpo_jax.train.stop import Preempted, StopRequest
from lpo_jax.train.weights import checkpoint_targets, load_params

log = logging.getLogger(__name__)


def train(config: RunConfig) -> dict[str, dict[str, float]]:
    """Run every stage of `config`, or what is left of them, and return the summary: held-out metrics of "init" and after each stage.

    Running the same config again goes on from the last checkpoint, also with other devices and another number of processes; a finished
    run is only reported again. With several processes, all call it together.

    Raises:
      ConfigError: config, data and run directory don't fit together.
      DataError: there are no shards, or they are damaged.
      Preempted: SIGTERM or SIGINT came, and a checkpoint is saved.
      TrainingError: the loss stays not finite, or checkpoints can't be read or written.
    """
    # --- Check everything that can be known before the first step.
    with all_or_none():
        track.check(config)
        data, feeds, decode = open_data(config)
        mesh, model = make_mesh(config.mesh), hf.open_model(config.model)
        check_fit(config, data, feeds, model, mesh)
        with jax.set_mesh(mesh):
            computed_by = attention.backend_of(config.model.attention)
        beside = {name: open_beside(config, name, feeds[name].manifest) for name in config.stages}
        targets = checkpoint_targets(config, model, mesh)
    size = max(checkpoint.array_bytes(target) for target in targets.values())
    key, own = data_key(config, data, feeds), own_sets(config, feeds)

    with run_dir.claimed(config, data.manifest, own, size) as claim, jax.set_mesh(mesh), StopRequest() as stop, ExitStack() as writers:
        writers.enter_context(logging_redirect_tqdm())  # lines stand above the bars
        directory = claim.directory
        log.info("attention: %s", attention.TOLD[computed_by])
        # --- Resume: the newest checkpoint, else the model's own weights.
        done, state = checkpoint.restore(directory, targets) or (None, None)
        if done and done.data_key != key:
            raise ConfigError(
                f"{directory}: its checkpoints were trained on other data than {' and '.join(config.shard_paths().values())} hold now (shards, their order or weights); "
                "choose a new run_dir, or delete the directory to start again"
            )
        resumed = done.total_step if done else -1
        checkpoints = writers.enter_context(Checkpoints(directory, config, resumed))
        with all_or_none():
            trackers = track.open_trackers(config, directory, resumed)
        metrics = writers.enter_context(closing(MetricLog(directory, resumed, trackers)))
        profile = writers.enter_context(closing(Profile(config.profile, directory, max(resumed, 0))))
        params, frozen = load_params(config, model, mesh) if done is None or model.lora else ({}, {})
        measure = partial(evaluate, make_eval_step(model, mesh), mesh, data, config, decode, frozen)

        def measure_and_draw(name: str, step: int, total_step: int, params: Params) -> dict[str, float]:
            claim.check()
            measured, pairs = measure(params, draw=config.report_pairs)
            write_evaluation(directory, name, measured, pairs)
            say(f"held-out pairs, {'before training' if name == 'init' else f'after {name}'}", measured)
            metrics.write(name, step, total_step, measured, group="heldout")
            return measured

        def save(stage: Stage, step: int, state: TrainState, measured: dict[str, float]) -> None:
            claim.check()
            metrics.sync()
            progress = Progress(stage.name, step, stage.before + step, key, to_dict(config))
            checkpoints.save(state, progress, measured)

        if done is None:
            measure_and_draw("init", 0, 0, params)

        # --- The stages, each with a fresh optimizer.
        names, total = list(config.stages), 0
        for index, name in enumerate(names):
            stage = Stage(config, name, index, total, model, mesh, feeds[name], beside[name])
            total += stage.length
            if done and names.index(done.stage) > index:
                continue
            start = 0 if state is None else int(state.step)
            known = frozen
            if start < stage.length:
                known = frozen | stage.load_beside(directory, params if state is None else None, frozen)
            state, train_step = stage.first_state(params) if state is None else state, stage.step()
            steps = tqdm(
                stage.batches(start), name, stage.length, initial=start, unit="step", dynamic_ncols=True, disable=jax.process_index() > 0
            )
            bar = writers.enter_context(ticking(steps))
            step_log = StepLog(stage, directory, metrics, bar)
            for step, batch in enumerate(bar, start + 1):
                profile.begin(stage.before + step)
                state, terms = train_step(state, known, batch)
                profile.end(stage.before + step, terms)
                stopping = stop.reached(stage.before + step)
                checkpoints.check()
                step_log.add(step, terms)
                within = step < stage.length
                measured: dict[str, float] = {}
                evaluating = within and config.eval_every_steps > 0 and step % config.eval_every_steps == 0
                saving = stopping or (within and step % config.checkpoint_every_steps == 0)
                if evaluating or saving:
                    step_log.flush()
                if evaluating:
                    measured, _ = measure(state.params)
                    say(f"held-out pairs, {name} step {step}", measured)
                    metrics.write(name, step, stage.before + step, measured, group="heldout")
                if saving:
                    save(stage, step, state, measured)
                if stopping:
                    checkpoints.close()
                    raise Preempted(f"asked to stop: stage {name} is saved after step {step} in {directory}")
            step_log.flush()
            bar.close()
            save(stage, stage.length, state, measure_and_draw(name, stage.length, total, state.params))
            params, state, known = state.params, None, frozen  # moments, teacher and reference are free before the next stage's are made

        # --- Wind up.
        checkpoints.close()
        reference.forget(directory)
        summary = read_summary(directory, config)
        if jax.process_index() == 0:
            write_json(directory / "summary.json", summary | {"names": ENGLISH})
            page = write_report(directory, to_dict(config), summary)
            metrics.finish(track.End(total, summary, page, f"{directory.absolute()}/checkpoints/step_{total}"))
    return summary
