"""Stand-ins for gcloud, kubectl, sbatch, ...: they write down how they were called and answer as a test tells them to."""

import importlib
import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from launch import job
from launch.job import COMMANDS
from tests.helpers.paths import REPO

# Run by any of the names below. An answer is (pattern, out, code, times): the first that matches and isn't used up.
FAKE = """\
import fcntl, json, os, shutil, sys
home = os.environ["FAKES"]
argv = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
import re
with open(home + "/lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    answers = json.load(open(home + "/answers.json"))
    said = next((a for a in answers if a["times"] != 0 and re.search(a["pattern"], " ".join(argv), re.DOTALL)), None)
    if said:
        said["times"] -= 1
        json.dump(answers, open(home + "/answers.json", "w"))
    text = sys.stdin.read() if "--filename=-" in argv else ""
    call = {"argv": argv, "stdin": text, "env": {k: v for k, v in os.environ.items() if k.startswith(("JAX_", "XLA_", "LPO_", "HF_"))}}
    open(home + "/calls.jsonl", "a").write(json.dumps(call) + "\\n")
for word in argv:
    if word.startswith("--output=/"):
        open(word.partition("=")[2], "w").write("archive")
if "scp" in argv:
    source = argv[argv.index("scp") + 1]
    shutil.copy2(source, home + "/copied-" + os.path.basename(source))
if said and said["out"] == "hang":
    import time
    time.sleep(60)
elif said:
    (sys.stderr if said["code"] else sys.stdout).write(said["out"])
    sys.exit(said["code"])
"""
NOT_FOUND = "ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource was not found\n"
CONFIG = "configs/tiny_cpu.yaml"
ELSEWHERE = "data.path=runs/none"  # whatever `make train` has left here
FITS = "mesh.tensor=16"  # on v5e:4x4 its batches, of one row, aren't cut
TOPOLOGY = "mesh.topology=v5e:4x4"
MANIFEST = {
    "format_version": 1, "tokenizer_sha256": "0" * 64, "vocab_size": 1024, "eos_id": 0, "bos_id": None, "masks": {}, "trimmed": True,
    "scores_prompt": False, "row_tokens": 1024, "row_scored": 512, "row_pairs": 8, "longest_path": 900, "drops": {}, "inputs": [],
    "build_key": "key", "splits": {name: {"rows": 960, "pairs": 1900, "tokens": 500_000, "shards": []} for name in ("train", "heldout")},
}  # fmt: skip
STEPS = [  # of `make train-tpu`
    "plan",
    "storage",
    "tpu-vm create",
    "resources create",
    "tpu-vm delete",
    "resources delete",
    "scp",
    "setup",
    "worker.sh start",
    "follow",
]
PROGRAMS = (
    "gcloud",
    "kubectl",
    "xpk",
    "docker",
    "tar",
    "sky",
    "sbatch",
    "squeue",
    "sacct",
    "srun",
    "scontrol",
    "git",
    "lpo",
    "ssh-add",
    "ssh-keygen",
)
ENVIRONMENT = {
    "LPO_PROJECT": "proj",
    "LPO_ZONE": "us-west4-a",
    "LPO_BUCKET": "bkt",
    "LPO_CLUSTER": "clu",
    "LPO_IMAGE": "reg.dev/proj/repo/lpo",
}


_SERVER = multiprocessing.get_context("forkserver")  # has imported once what each launcher would import anew, in seconds
_SERVER.set_forkserver_preload(
    [
        "launch.tpu",
        "launch.gke",
        "launch.slurm",
        "launch.local",
        "launch.sky",
        "evaluation.cli",
        "lpo_jax.decode.job",
        "lpo_jax.train.teacher",
        "tests.helpers.launch",
    ]
)


class Launched:
    """A running `python -m launch.MODULE WORDS`, in a process group of its own, as a terminal starts it; its output passes through files."""

    def __init__(self, home: Path, module: str, words: Iterable[str], env: dict[str, str]):
        self.args = [module, *words]
        self._files = [home / f"{name}-{time.monotonic_ns()}" for name in ("out", "err")]
        for file in self._files:
            file.touch()
        self._process = _SERVER.Process(target=_launch, args=(self.args, env, *map(str, self._files)))
        self._process.start()

    @property
    def out(self) -> str:
        return self._files[0].read_text()

    def until(self, text: str) -> None:
        """Wait until it has said this."""
        end = time.monotonic() + 60
        while text not in self.out:
            assert self._process.is_alive() and time.monotonic() < end, self.out + self._files[1].read_text()
            time.sleep(0.02)

    def interrupt(self) -> None:
        """Ctrl-C: the terminal tells the launcher and what it has started."""
        os.killpg(self._process.pid, signal.SIGINT)

    def lose(self) -> None:
        """The laptop is gone, and all that ran on it."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join()

    def end(self) -> subprocess.CompletedProcess[str]:
        self._process.join(60)
        assert self._process.exitcode is not None, "it hangs"
        return subprocess.CompletedProcess(self.args, self._process.exitcode, self.out, self._files[1].read_text())


def _launch(args: list[str], env: dict[str, str], *files: str) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(REPO)
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number, inheritable=True)
    sys.argv = args
    sys.exit(importlib.import_module(f"launch.{args[0]}").main())


class Fakes:
    """A PATH with nothing but stand-ins, what they answer, and how they were called."""

    def __init__(self, home: Path):
        self.home, self.bin = home, home / "bin"
        self.bin.mkdir()
        for name in PROGRAMS:
            self.add(name, f"#!{sys.executable} -SE\n{FAKE}")
        self.answers: list[dict] = []
        self.answer("stash create", "c0ffee\n")
        self.answer("rev-parse", "0123456789abcdef\n")
        self.answer("auth list", "me@example.com\n")
        self.answer("buckets describe", "True\n")
        self.answer("storage cat .*/manifest.json", json.dumps(MANIFEST))
        self.answer("storage (cat|ls)", "ERROR: The following URLs matched no objects or files\n", code=1)

    def add(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def answer(self, pattern: str, out: str = "", code: int = 0, times: int = -1, first: bool = False) -> None:
        """What a call that matches `pattern` prints ("hang": nothing, for a minute) and ends with, `times` times (-1: always); earlier answers win, but for `first`."""
        answer = {"pattern": pattern, "out": out, "code": code, "times": times}
        self.answers.insert(0, answer) if first else self.answers.append(answer)

    def run(self, module: str, *words: str, env: dict[str, str | None] | None = None) -> subprocess.CompletedProcess[str]:
        """Run `python -m launch.MODULE` with no pauses."""
        return self.start(module, *words, env=env).end()

    def start(self, module: str, *words: str, env: dict[str, str | None] | None = None) -> Launched:
        """Begin to."""
        if not any(word in COMMANDS for word in words):
            words = training(words)
        words = words if module in ("local", "sky") else ("--pause-s=0", *words)
        return Launched(self.home, module, words, self.options(env)["env"])

    def options(self, env: dict[str, str | None] | None = None) -> dict:
        (self.home / "answers.json").write_text(json.dumps(self.answers))
        given = {"PATH": str(self.bin), "FAKES": str(self.home), "HOME": str(self.home), "USER": "eve", **ENVIRONMENT, **(env or {})}
        return {"env": {k: v for k, v in given.items() if v is not None}, "cwd": REPO, "capture_output": True, "text": True, "timeout": 60}

    @property
    def calls(self) -> list[dict]:
        file = self.home / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def lines(self, pattern: str = "") -> list[str]:
        """Calls as shell commands, those that match."""
        found = [shlex.join(call["argv"]) for call in self.calls]
        return [line for line in found if re.search(pattern, line)]

    def order(self, patterns: Iterable[str]) -> list[str]:
        """Which of `patterns` each call matched first, in the order of the calls; others are left out."""
        hits = (next((p for p in patterns if re.search(p, line)), None) for line in self.lines())
        return [hit for hit in hits if hit]


def training(words: Iterable[str]) -> tuple[str, ...]:
    """A launcher's own options, as it wants them, in front of the command, which is train."""
    options = [word for word in words if word.startswith("--")]
    rest = [word for word in words if not word.startswith("--")]
    return (*options, "train", *rest) if rest else tuple(options)


def make_targets() -> set[str]:
    """All that `make` can make."""
    env = {key: value for key, value in os.environ.items() if "MAKE" not in key and key != "MFLAGS"}  # `make test` runs this
    shown = subprocess.run(["make", "-npR", "help"], cwd=REPO, env=env, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^([\w./-]+):(?!=)", shown, re.MULTILINE))


def node(state="READY", workers=4, topology="4x4"):
    return json.dumps({"state": state, "networkEndpoints": [{}] * workers, "acceleratorConfig": {"topology": topology}})


def queued(state, message=""):
    return json.dumps({"state": {"state": state, "failedData": {"error": {"message": message}}}})


def up(fakes, *words, **options):
    return fakes.run("tpu", "--tpu=v5e:4x4", CONFIG, FITS, *words, **options)


def told(*overrides):
    """What a worker says of a job that was started with these, and that runs."""
    return f"worker.sh: job {job.read('train', [str(REPO / CONFIG), FITS, *overrides, TOPOLOGY]).text()}\nworker.sh: running\n"
