"""Checkpoints: the state, and where in the run it stands.

Orbax writes into a temporary directory and renames it when it is complete, so a killed process leaves no half checkpoint.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from lpo_jax.train.state import TrainState


@dataclass(frozen=True)
class Progress:
    """Where a checkpoint stands: `step` steps of `stage` are done, which is also its position in the stage's data."""

    stage: str
    step: int
    total_step: int  # steps of the whole run, the checkpoint's number
    data_key: str  # the shard set's build_key
    config: dict[str, Any]  # the run's settings


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, run_dir: Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, step_prefix="step", enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager((run_dir / "checkpoints").absolute(), options=options)

    def save(self, state: TrainState, progress: Progress) -> None:
        """Write a checkpoint in the background; waits for the one before."""
        if progress.total_step == self._manager.latest_step():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(asdict(progress)))
        self._manager.save(progress.total_step, args=items)

    def progress(self) -> Progress | None:
        """Where the newest checkpoint stands; None if there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        restored = self._manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))
        return Progress(**restored["progress"])

    def restore(self, target: TrainState) -> TrainState:
        """The newest checkpoint's state, laid out as `target`: a TrainState of `jax.ShapeDtypeStruct`s with shardings."""
        args: Any = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        return self._manager.restore(self._manager.latest_step(), args=args)["state"]

    def close(self) -> None:
        """Wait for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()
