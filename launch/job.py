"""What a job is: one command with its arguments, which every host runs alike. One that runs is followed only by who asks for that very job."""

import argparse
import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foundation.files import Json, differences, read_object
from launch.common import LaunchError, name_of
from lpo_jax.config import RunConfig, from_dict, load, to_dict

MODELS = ("model", "adapter", "tokenizer", "security", "security_adapter", "security_tokenizer", "template")
WEIGHTS = ("model.path", "--model", "--completions", "--security")
NO_PATHS = ("canonical", "insecure", "openai", "alpaca", "chat", "plain")  # what --completions and --template may say beside files
NOT_ASKED = ("run", "config", "overrides")  # of the arguments, what isn't the user's, or stands in the config


@dataclass(frozen=True)
class Command:
    """What can be launched."""

    program: tuple[str, ...]
    what: str
    reads: tuple[str, ...] = ()  # its arguments that name files, directories or hub ids
    writes: str | None = None  # the argument that names what it writes


COMMANDS = {
    "train": Command(("lpo", "train"), "run a config"),
    "eval": Command(("lpo-eval", "run"), "judge a model on a benchmark", ("data", "completions", *MODELS[1:]), "out"),
    "serve": Command(("lpo", "serve"), "answer OpenAI's API, through a tunnel to this machine", MODELS),
    "generate": Command(("lpo", "generate"), "complete prompts", ("prompts", *MODELS), "out"),
    "teacher": Command(("lpo", "teacher"), "run a kd stage's teacher once", writes="out"),
    "export": Command(("lpo", "export"), "write a run as a Hugging Face directory", ("run_dir",), "out"),
}
SETTINGS = [("data", "tokenizer"), ("model", "path"), ("model", "adapter"), ("model", "shape")]  # of a config, that name what a run reads


@dataclass(frozen=True)
class Job:
    """A command as it was asked for, its arguments read by the program's own parser."""

    command: str  # of COMMANDS
    words: tuple[str, ...]  # its arguments
    given: argparse.Namespace  # the same, read
    config: RunConfig | None  # of train and teacher

    def argv(self, tree: str | None = None) -> list[str]:
        """What a host runs, in the directory in which all other paths of the arguments lie. `tree`: where the config's file is there, if not there."""
        found = [*COMMANDS[self.command].program, *self.words]
        if tree is not None and self.config is not None:
            found[found.index(self.given.config)] = f"{tree}/{self.given.config}"
        return found

    @property
    def output(self) -> str | None:
        """The directory or file that it writes."""
        if self.command == "train":
            assert self.config is not None
            return self.config.run_dir
        key = COMMANDS[self.command].writes
        found = None if key is None else getattr(self.given, key)
        return None if found is None else str(found)

    @property
    def name(self) -> str:
        """Of what is created for it."""
        return name_of(self.place)

    @property
    def place(self) -> str:
        """What its name follows: what it writes, pushes or serves."""
        if self.command == "export":
            return self.output or f"export/{self.given.push or self.given.run_dir}"
        return self.output or f"serve/{self.given.name or self.given.model}"

    def folders(self) -> list[str]:
        """Those of the files that it writes, which no command makes."""
        files = [getattr(self.given, key) for key in ("out", "html")] if self.command == "generate" else []
        return sorted({str(file.parent) for file in files if file is not None} - {"."})

    def inputs(self) -> dict[str, str]:
        """The paths that it reads, by key or flag: a config's shard sets first."""
        found = {} if self.config is None else inputs(self.config)
        for key in COMMANDS[self.command].reads:
            value = getattr(self.given, key, None)
            for index, one in enumerate(value if isinstance(value, list) else [value] if value else []):
                path = re.sub(r"^[A-Za-z0-9][\w.-]*=", "", str(one)) if key == "adapter" else str(one)
                if path in NO_PATHS or path.startswith(("http://", "https://", "hf://")):  # read where it runs
                    continue
                name = key if key in ("prompts", "run_dir") else f"--{key.replace('_', '-')}"
                found[f"{name} {index}" if index else name] = path
                if run := run_in(path):  # here, and so what it stands on may be here too
                    found |= {f"{path}: {setting}": value for setting, value in run.stands_on().items()}
        return found

    def facts(self) -> Json:
        """What it is: the run's settings, but for what only `lpo plan` reads, and, where it doesn't train, its arguments."""
        settings = {} if self.config is None else {key: value for key, value in to_dict(self.config).items() if key != "plan"}
        if self.command == "train":
            return settings
        asked = {key: value for key, value in vars(self.given).items() if key not in NOT_ASKED}
        return json.loads(json.dumps({"command": self.command} | asked | settings, default=str))

    def text(self) -> str:
        """Its facts on one line, as they travel with the job."""
        return json.dumps(self.facts(), sort_keys=True)

    def check_same(self, name: str, running: str | None) -> None:
        """Refuse to follow a job that isn't this one.

        Args:
          running: what it said of itself (`text`); None: nothing.

        Raises:
          LaunchError: with the settings that differ.
        """
        remedy = "ask for the same job, or give this one a run_dir (or -o, or JOB) of its own; nothing was stopped or deleted"
        if running is None:
            raise LaunchError(f"{name} is running, and doesn't say with which settings: {remedy}")
        if lines := differences(json.loads(running), self.facts()):
            listed = "\n".join(f"  - {line}" for line in lines)
            raise LaunchError(f"{name} is running with other settings:\n{listed}\n{remedy}")

    def on(self, topology: str) -> "Job":
        """The same job, its config told of the slice."""
        if self.config is None or self.config.mesh.topology == topology:
            return self
        words = [word for word in self.words if not word.startswith("mesh.topology=")]
        settings = [word for word in self.given.overrides if not word.startswith("mesh.topology=")]
        words.insert(words.index(settings[-1] if settings else self.given.config) + 1, f"mesh.topology={topology}")
        return read(self.command, words)

    def tunnel(self, port: int | None) -> tuple[int, int] | None:
        """Of a server: the port here, which is its own if none is given, and the port there."""
        return (port or self.given.port, self.given.port) if self.command == "serve" else None

    def follow_up(self, bucket: str) -> str | None:
        """How its results come here; None: there are none."""
        if self.output is None:
            return None
        if self.command == "train":
            return f"The report: gcloud storage cp {shlex.quote(f'{url_of(self.output, bucket)}/report.html')} ."
        whole = " --recursive" if self.command in ("eval", "teacher", "export") else ""
        return f"To bring it here: gcloud storage cp{whole} {shlex.quote(url_of(self.output, bucket))} ."


def read(command: str, words: Sequence[str]) -> Job:
    """A job from what was asked for.

    Raises:
      UserError: the program wouldn't take these arguments, or the config.
    """
    if command == "eval":
        from evaluation.cli import program  # here: it takes its time
    else:
        from lpo_jax.cli import program
    given = program().parse([*COMMANDS[command].program[1:], *words], elsewhere=True)
    if not hasattr(given, "overrides"):
        return Job(command, tuple(words), given, None)
    words = [os.path.relpath(word) if word == given.config else word for word in words]
    given.config = os.path.relpath(given.config)
    return Job(command, tuple(words), given, load(given.config, given.overrides))


def check_paths(job: Job) -> None:
    """Paths must be relative where the job runs elsewhere, because it starts in another directory: the bucket.

    Raises:
      LaunchError: naming the one that isn't.
    """
    written = {} if job.output is None else {"run_dir" if job.command == "train" else "-o": job.output}
    for key, value in {**written, **job.inputs()}.items():
        native = value.startswith("gs://") and (key == "run_dir" or key in WEIGHTS)  # neither checkpoints nor weights need a mounted bucket
        if not native and (Path(value).is_absolute() or ".." in Path(value).parts or "://" in value):
            raise LaunchError(f"{key}={value}: give a path relative to this checkout and to the bucket, like runs/NAME or data/NAME")


def inputs(config: RunConfig) -> dict[str, str]:
    """The paths that a run reads, by key: its shard sets first, at last what stands beside the trained model."""
    settings = to_dict(config)
    found = {f"{part}.{key}": settings[part].get(key) for part, key in SETTINGS}
    for name, stage in settings["stages"].items():
        objective = stage["objective"]
        found[f"stages.{name}.objective.kl.teacher"] = (objective.get("kl") or {}).get("teacher")
        found[f"stages.{name}.objective.reference"] = objective.get("reference")
    return config.shard_paths() | {key: value for key, value in found.items() if value is not None}


def run_in(path: str) -> RunConfig | None:
    """The settings of the run whose directory lies here at `path`; None: there is none."""
    file = Path(path) / "config.json"
    raw = read_object(file) if Path(path).is_dir() else {}
    return from_dict(RunConfig, raw, str(file)) if "stages" in raw else None


def url_of(path: str, bucket: str) -> str:
    return path if path.startswith("gs://") else f"gs://{bucket}/{path}"
