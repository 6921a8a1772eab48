"""What a job is: one run, with all of its settings. One that runs is followed only by who asks for that very run."""

import json

from foundation.files import Json, differences
from launch.common import LaunchError
from lpo_jax.config import RunConfig, to_dict


def facts(config: RunConfig) -> Json:
    """The run's settings, but for what only `lpo plan` reads."""
    return {key: value for key, value in to_dict(config).items() if key != "plan"}


def text(config: RunConfig) -> str:
    """Its facts on one line, as they travel with the job."""
    return json.dumps(facts(config), sort_keys=True)


def check_same(name: str, running: str | None, config: RunConfig) -> None:
    """Refuse to follow a job that isn't the one that is asked for.

    Args:
      running: what it said of itself (`text`); None: nothing.

    Raises:
      LaunchError: with the settings that differ.
    """
    remedy = "ask for the same run, or give this one a run_dir (or JOB) of its own; nothing was stopped or deleted"
    if running is None:
        raise LaunchError(f"{name} is running, and doesn't say with which settings: {remedy}")
    if lines := differences(json.loads(running), json.loads(text(config))):
        listed = "\n".join(f"  - {line}" for line in lines)
        raise LaunchError(f"{name} is running with other settings:\n{listed}\n{remedy}")
