"""Checkpoints: the state, and where in the run it stands.

All processes write their own part, in the background, into a temporary directory that is renamed when everything is there (on a
bucket: marked), so a killed run leaves no half checkpoint. Fingerprints of the state, and of its parameters alone, are stored beside it: one
that has been damaged since is found and passed over.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from foundation.files import Json
from lpo_jax.config import RunConfig
from lpo_jax.model.decoder import Params
from lpo_jax.objectives.heldout import HIGHER_IS_BETTER
from lpo_jax.tensors import on_host
from lpo_jax.train.distributed import first_problem, known_to_all
from lpo_jax.train.run_dir import reason
from lpo_jax.train.state import TrainState, fingerprint
from lpo_jax.train.stop import CheckpointError, TrainingError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Where a checkpoint stands: `step` steps of `stage` are done, which is also its position in the stage's data."""

    stage: str
    step: int
    total_step: int  # steps of the whole run, the checkpoint's number
    data_key: str  # of what the run is trained on, see `train.data.data_key`
    config: Json  # the run's settings


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Not asked here: orbax does so in the background with a step that is past, which muddles the processes' agreement on a step."""
        return False


class Checkpoints:
    """Writes the checkpoints of one run directory, and deletes all but the newest `keep_checkpoints` and the best one.

    The best is the one with the best `best_metric` among those that were saved where held-out pairs were evaluated.

    Used as a context manager: after an error the checkpoint that is being written is waited for, so that the same process may start again.
    """

    def __init__(self, run_dir: epath.Path, config: RunConfig, resumed: int):
        """Args: resumed: number of the checkpoint that the run goes on from; newer ones are damaged and put aside."""
        self._directory = (run_dir / "checkpoints").absolute()
        for step in _steps(self._directory):
            if step > resumed and jax.process_index() == 0:
                aside = self._directory / f"damaged_step_{step}"
                if aside.exists():
                    aside.rmtree()
                (self._directory / f"step_{step}").rename(aside)
        multihost_utils.sync_global_devices("damaged checkpoints are aside")
        best = BestN(n=1, get_metric_fn=_score(config.best_metric), keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            step_prefix="step",
            preservation_policy=AnyPreservationPolicy([LatestN(config.keep_checkpoints), best]),
            best_fn=_score(config.best_metric),  # without one, metrics aren't stored
            cleanup_tmp_directories=True,  # what a killed run left
        )
        self._manager = _Manager(self._directory, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception) and known_to_all(error):  # else the others may not write their parts
            try:
                self._manager.wait_until_finished()
            except Exception as second:  # noqa: BLE001 (the first error is what is told)
                log.warning("the last checkpoint couldn't be written to %s: %s", self._directory, reason(second))

    def save(self, state: TrainState, progress: Progress, heldout: Mapping[str, float]) -> None:
        """Write a checkpoint in the background; waits for the one before. `heldout`: its held-out metrics, if they were computed.

        Raises:
          CheckpointError: this one can't be begun, or the one before couldn't be finished.
        """
        if progress.total_step == self._manager.latest_step():
            return
        whole, params = on_host((fingerprint(state), fingerprint(state.params)))
        facts = asdict(progress) | {"fingerprint": int(whole), "params_fingerprint": int(params)}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(facts))
        with self._explained():
            self._manager.save(progress.total_step, args=items, metrics=dict(heldout), force=True)

    def check(self) -> None:
        """Raise CheckpointError if the checkpoint that is being written has failed."""
        with self._explained():
            self._manager.check_for_errors()

    def close(self) -> None:
        """Wait for what is being written.

        Raises:
          CheckpointError: it couldn't be finished.
        """
        with self._explained():
            self._manager.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise CheckpointError(
                f"a checkpoint couldn't be written to {self._directory}: {reason(error)}. The complete ones before it stay; "
                "make room there, if that is it, and run the same command again"
            ) from error


def array_bytes(state: TrainState) -> int:
    """What a checkpoint's arrays hold: the trained parameters, what the optimizer keeps of them, and the counters."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def restore(run_dir: epath.Path, targets: Mapping[str, TrainState]) -> tuple[Progress, TrainState] | None:
    """The newest checkpoint that is whole, or None. It may have been written by any number of processes and devices.

    Damaged ones are named and passed over; nothing on the disk is changed. All processes call it together.

    Args:
      targets: by stage, a TrainState of `jax.ShapeDtypeStruct`s with shardings: how its state is laid out here.

    Raises:
      TrainingError: there are checkpoints, and none can be read.
    """
    return _restore(run_dir, lambda stage: ocp.args.StandardRestore(targets[stage]), "fingerprint", None)


def restore_params(run_dir: epath.Path, shapes: Params, best_metric: str | None = None) -> tuple[Progress, Params] | None:
    """As `restore`, what is trained alone: nothing is read of what an optimizer keeps.

    Args:
      shapes: `jax.ShapeDtypeStruct`s with shardings.
      best_metric: prefer the checkpoint that is best by this held-out metric to the newest.
    """
    item = {"params": shapes}
    wanted = ocp.args.PyTreeRestore(item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True)
    found = _restore(run_dir, lambda _: wanted, "params_fingerprint", best_metric)
    return None if found is None else (found[0], found[1]["params"])


def _restore(
    run_dir: epath.Path, wanted: Callable[[str], ocp.args.CheckpointArgs], known_by: str, best_metric: str | None
) -> tuple[Progress, Any] | None:
    """What is `wanted` of the newest whole checkpoint, or of the best. `known_by`: the fact that is its fingerprint."""
    directory = (run_dir / "checkpoints").absolute()
    if not directory.exists():
        return None
    damaged: list[str] = []
    with _reader(directory) as manager:
        rank = _score(best_metric) if best_metric else lambda _: 0.0
        for step in sorted(_steps(directory), key=lambda s: (rank(manager.metrics(s) or {}), s), reverse=True):
            problem = None
            try:
                facts = dict(manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))["progress"])
                fingerprints = {name: facts.pop(name, None) for name in ("fingerprint", "params_fingerprint")}
                state = manager.restore(step, args=ocp.args.Composite(state=wanted(facts["stage"])))["state"]
            except Exception as error:  # noqa: BLE001 (whatever is wrong with the files, an older checkpoint may be whole)
                problem = reason(error)
            problem = first_problem(problem)
            # A checkpoint of an earlier version doesn't say what its parameters' is.
            if problem is None and fingerprints[known_by] not in (None, int(on_host(fingerprint(state)))):
                problem = "its content isn't what was written"
            if problem is None:
                for line in damaged:
                    log.warning("%s; going on from step_%d", line, step)
                return Progress(**facts), state
            damaged.append(f"{directory}/step_{step} is damaged ({problem})")
    if damaged:
        raise TrainingError(f"{damaged[0]}, and no other checkpoint there can be read; restore one, or delete the directory to start again")
    return None


def _reader(directory: epath.Path) -> ocp.CheckpointManager:
    """Each process reads for itself, without orbax's barriers: one that fails must be able to say so."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    return ocp.CheckpointManager(
        directory, options=ocp.CheckpointManagerOptions(step_prefix="step", create=False, multiprocessing_options=alone)
    )


def newest(run_dir: epath.Path) -> str:
    """The newest finished checkpoint's number and its state's fingerprint; "" where there is none. Nothing is checked. A process may ask alone."""
    directory = (run_dir / "checkpoints").absolute()
    steps = _steps(directory, alone=True) if directory.exists() else []
    if not steps:
        return ""
    with _reader(directory) as manager:
        facts = manager.restore(max(steps), args=ocp.args.Composite(progress=ocp.args.JsonRestore()))["progress"]
    return f"step {max(steps)} {facts['fingerprint']}"


def _steps(directory: epath.Path, alone: bool = False) -> list[int]:
    """The numbers of the finished checkpoints. All processes call it together, and get what process 0 sees; but `alone`."""
    names = ocp.path.step.standard_name_format(step_prefix="step", single_host_load_and_broadcast=not alone)
    return [metadata.step for metadata in names.find_all(directory)]


def _score(metric: str) -> Callable[[Mapping[str, float]], float]:
    """What a checkpoint's held-out metrics are worth: the more the better, nothing if they weren't computed."""
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
    return lambda metrics: sign * metrics[metric] if metric in metrics else float("-inf")
