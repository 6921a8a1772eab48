"""What a job is: one run, with all of its settings. One that runs is followed only by who asks for that very run."""

import json
from collections.abc import Mapping
from typing import Any

from foundation.files import Json
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


def differences(theirs: Any, ours: Any) -> list[str]:
    """Settings that differ, "key: VALUE there, VALUE here"."""
    there, here = _flat(theirs), _flat(ours)
    return [
        f"{key}: {there.get(key, 'unset')} there, {here.get(key, 'unset')} here"
        for key in {**there, **here}
        if there.get(key, "unset") != here.get(key, "unset")
    ]


def _flat(value: Any, key: str = "") -> dict[str, str]:
    if isinstance(value, list):
        value = {str(index): item for index, item in enumerate(value)}
    if not isinstance(value, Mapping) or not value:
        return {key: json.dumps(value)}
    return {k: v for name, item in value.items() for k, v in _flat(item, f"{key}.{name}" if key else str(name)).items()}
