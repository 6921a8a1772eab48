"""What a stage's steps leave: lines of metrics, the progress bar, and a stop where nothing is finite any more."""

import time

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from foundation.files import write_json
from lpo_jax.objectives import Terms, means
from lpo_jax.tensors import on_host
from lpo_jax.train.metrics import MetricLog
from lpo_jax.train.optimizer import learning_rate
from lpo_jax.train.stage import Stage
from lpo_jax.train.stop import TrainingError


class StepLog:
    """Logs a stage's steps. Step n's numbers are read only when step n + 1 is under way, so that the device never waits for the host.

    Raises TrainingError when `max_skipped_steps` in a row were not finite.
    """

    def __init__(self, stage: Stage, run_dir: epath.Path, metrics: MetricLog, bar: tqdm):
        self._stage, self._run_dir, self._metrics, self._bar = stage, run_dir, metrics, bar
        # Computed now: while a step is under way nothing else is started on the devices.
        self._lr = np.asarray(learning_rate(stage.config.optim, stage.length)(np.arange(stage.length)))
        self._pending: tuple[int, Terms] | None = None
        self._read = time.perf_counter()

    def add(self, step: int, terms: Terms) -> None:
        """Log the step before, and keep this one's numbers for the next call."""
        self.flush()
        self._pending = step, terms

    def flush(self) -> None:
        """Log what is kept; waits for the devices."""
        if self._pending is None:
            return
        (step, terms), self._pending = self._pending, None
        values = means(on_host(terms))
        now = time.perf_counter()
        seconds, self._read = now - self._read, now
        tokens, in_row = values.pop("tokens"), int(values.pop("skipped_in_row"))
        applied = step - int(values["skipped_steps"])  # the schedule counts these
        values |= {"lr": float(self._lr[max(applied - 1, 0)]), "tokens_per_s": tokens / max(seconds, 1e-9)}
        if step % self._stage.run.log_every_steps == 0:
            self._metrics.write(self._stage.name, step, self._stage.before + step, values)
        shown = {"loss": values.get("loss"), "acc": values.get("rewards/accuracies"), "margin": values.get("rewards/margins")}
        rate = {"tok/s": f"{values['tokens_per_s']:.0f}"}
        self._bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items() if v is not None} | rate, refresh=False)
        if in_row >= self._stage.run.max_skipped_steps:
            self._metrics.sync()
            raise TrainingError(
                f"stage {self._stage.name}: loss or gradient of the last {in_row} steps up to step {step} is not finite; nothing was changed by them. "
                f"Their rows and pairs are listed in {self._list_skipped(step, in_row)}. Look at them, or lower stages.{self._stage.name}.optim.lr and "
                "train into a new run_dir"
            )

    def _list_skipped(self, last: int, count: int) -> epath.Path:
        """Write which rows of the train split, and pairs, the steps up to `last` read."""
        file, stage = self._run_dir / "skipped_rows.json", self._stage
        if jax.process_index() == 0:
            listed = []
            for step in range(last - count + 1, last + 1):
                rows = stage.data.step_rows(stage.config.batch_rows, step - 1, stage.index).tolist()
                listed.append({"step": step, "rows": [{"row": row, "pairs": stage.data.pair_ids("train", row)} for row in rows]})
            write_json(file, {"stage": stage.name, "steps": listed})
        return file
