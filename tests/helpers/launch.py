"""Stand-ins for gcloud, kubectl, sbatch, ...: they write down how they were called and answer as a test tells them to."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

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

    def add(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def answer(self, pattern: str, out: str = "", code: int = 0, times: int = -1, first: bool = False) -> None:
        """What a call that matches `pattern` prints ("hang": nothing, for a minute) and ends with, `times` times (-1: always); earlier answers win, but for `first`."""
        answer = {"pattern": pattern, "out": out, "code": code, "times": times}
        self.answers.insert(0, answer) if first else self.answers.append(answer)

    def run(self, module: str, *words: str, env: dict[str, str | None] | None = None) -> subprocess.CompletedProcess[str]:
        """Run `python -m launch.MODULE` with no pauses."""
        pauses = () if module == "local" else ("--pause-s=0",)
        return subprocess.run([sys.executable, "-m", f"launch.{module}", *words, *pauses], **self.options(env))

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


def node(state="READY", workers=4, topology="4x4"):
    return json.dumps({"state": state, "networkEndpoints": [{}] * workers, "acceleratorConfig": {"topology": topology}})


def queued(state, message=""):
    return json.dumps({"state": {"state": state, "failedData": {"error": {"message": message}}}})


def up(fakes, *words, **options):
    return fakes.run("tpu", "--tpu=v5e:4x4", CONFIG, *words, **options)
