"""A trace of some of a run's steps, for XProf: what each device did, and how long it waited."""

import logging
import tempfile
from contextlib import ExitStack
from pathlib import Path

import jax
from etils import epath

from lpo_jax.config import ProfileConfig
from lpo_jax.objectives import Terms

log = logging.getLogger(__name__)


class Profile:
    """Traces the steps that a config names, on process 0, into run_dir/profile.

    Args:
      done: steps that the run has behind it. Where the first one to trace is among them, nothing is traced.
    """

    def __init__(self, config: ProfileConfig | None, run_dir: epath.Path, done: int):
        self._config = config if jax.process_index() == 0 else None
        self._directory = run_dir / "profile"
        self._running = ExitStack()
        self._last = 0  # of the steps that are traced; 0: none is
        if self._config is not None and done >= self._config.start:
            log.info("profile: step %d (profile.start) is done already; nothing is traced", self._config.start)

    def begin(self, step: int) -> None:
        """Before a step, counted over all stages."""
        if self._config is None or step != self._config.start:
            return
        # A directory of this machine first: the profiler writes to no bucket.
        there = Path(self._running.enter_context(tempfile.TemporaryDirectory()))
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every Python call would make the trace ten times as large, and the steps slow
        jax.profiler.start_trace(there, profiler_options=options)
        self._running.callback(self._keep, there)
        self._last = step + self._config.steps - 1

    def end(self, step: int, terms: Terms) -> None:
        """After a step was started that gives `terms`: with the last one to trace, write the trace."""
        if self._last and step == self._last:
            jax.block_until_ready(terms)
            self.close()

    def close(self) -> None:
        """Write what has been traced so far, if anything is being traced."""
        self._last = 0
        self._running.close()

    def _keep(self, there: Path) -> None:
        jax.profiler.stop_trace()
        for file in there.rglob("*"):
            if file.is_file():
                kept = self._directory / file.relative_to(there)
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(file.read_bytes())
        log.info("profile: a trace is in %s; look at it with: pip install xprof && xprof --logdir %s", self._directory, self._directory)
