"""Train a config on a Cloud TPU, all of it from here:
  1. check the environment, once for all that is missing          2. ask `lpo plan` whether the run fits; stop where it doesn't
  3. create a TPU VM, or wait for a queued resource (--spot, --queued)
  4. copy git's files, changes included, and the run's inputs     5. install on every worker, with the bucket mounted
  6. run the same `lpo train` on every worker                     7. stream worker 0's log
  8. after a preemption create the TPU again and go on from the checkpoint in the bucket
  9. delete the TPU when told to (--delete)

A run's working directory is the bucket: run_dir=runs/x is gs://BUCKET/runs/x. A shard set or a model's directory that lies here is
uploaded; a hub id is fetched by the workers. The run doesn't need this terminal: Ctrl-C leaves it running, the same command follows it again.
On a TPU host itself this is just `lpo train CONFIG KEY=VALUE...`.

environment:
  LPO_PROJECT  Google Cloud project       LPO_ZONE  zone with TPU quota, e.g. us-west4-a
  LPO_BUCKET   bucket (no gs://) with a hierarchical namespace, in the zone's region
  HF_TOKEN     optional, for gated models; copied as a file that only you can read, never printed
"""

import argparse
import json
import os
import re
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from foundation.commands import whole
from foundation.errors import run_command
from launch import common, slices
from launch.common import PREEMPTED, Checks, LaunchError, Shell, say
from launch.slices import Slice

EXAMPLES = """\
examples:
  make train-tpu CONFIG=configs/qwen2_5_coder_7b.yaml TPU=v5e:4x4 ARGS="data.path=data/disco run_dir=runs/qwen"
  make train-tpu CONFIG=configs/codellama_7b.yaml TPU=v5litepod-16 SPOT=1 DELETE=1        (Google Cloud's name for the same slice)
  make train-tpu CONFIG=... TPU=v5p:2x2x4 DRY_RUN=1                                       (show every command, run none)
  make train-tpu-down CONFIG=configs/codellama_7b.yaml                                    (or JOB=...)
"""
READY, WAITING = "READY", {"ACCEPTED", "CREATING", "PROVISIONING", "WAITING_FOR_RESOURCES"}
STARTING = {"CREATING", "STARTING", "RESTARTING", "REPAIRING"}
NO_CAPACITY = re.compile(r"no more capacity|stockout|RESOURCE_EXHAUSTED|UNAVAILABLE|internal error|\"code\": ?(8|13|14)\b", re.IGNORECASE)
HF_TOKEN_FILE = ".lpo-hf-token"  # in the worker's home directory


class NoCapacityError(LaunchError):
    """Google Cloud has no such TPU free now; later it may."""


class PreemptedError(LaunchError):
    """The TPU was taken away; a new one can go on."""


@dataclass(frozen=True)
class Node:
    """A TPU VM as Google Cloud describes it."""

    state: str  # "" if there is none
    workers: int
    topology: str  # "" if it isn't said


class Tpu:
    """One TPU VM, by name, with the queued resource of the same name that it may come from."""

    def __init__(self, shell: Shell, args: argparse.Namespace, project: str, zone: str, wanted: Slice | None):
        self.shell, self.args, self.wanted = shell, args, wanted
        self.name: str = args.name
        self.queued: bool = args.spot or args.queued
        self.touched = False  # something may exist in the cloud that costs money
        self._where = [f"--project={project}", f"--zone={zone}", "--quiet"]

    def ensure(self) -> Node:
        """The node, ready: the one that is there, or a new one."""
        node = self.describe()
        since = time.monotonic()
        while node.state in STARTING:
            self._check_time(since, node.state)
            self.shell.sleep(self.args.pause_s)
            node = self.describe()
        if node.state != READY:
            request = self.request()[0]
            if node.state or request not in {"", *WAITING}:
                say(f"{self.name} is {node.state or request}: deleting it to create it again")
                self.delete()
            self._create()
            node = self.describe()
        self.touched = True
        if node.state != READY:
            raise PreemptedError(f"{self.name} is {node.state or 'gone'} right after its creation")
        if self.wanted and node.topology not in {"", self.wanted.topology}:
            raise LaunchError(
                f"{self.name} exists with topology {node.topology}, not {self.wanted.topology}: choose another JOB name, or delete it"
            )
        say(f"{self.name} is ready: {node.workers} worker{'s' * (node.workers != 1)}")
        return node

    def describe(self) -> Node:
        hosts = self.wanted.hosts if self.wanted else 1
        pretend = {"state": READY, "networkEndpoints": [{}] * hosts} if self.touched else {}
        facts = self._facts("tpu-vm", pretend)
        return Node(facts.get("state", ""), len(facts.get("networkEndpoints", [])), facts.get("acceleratorConfig", {}).get("topology", ""))

    def request(self) -> tuple[str, str]:
        """The queued resource's state ("" if there is none) and what Google Cloud says about a failure."""
        pretend = {"state": {"state": "ACTIVE"}} if self.touched and self.queued else {}
        state = self._facts("queued-resources", pretend).get("state", {})
        return state.get("state", ""), state.get("failedData", {}).get("error", {}).get("message", "")

    def delete(self) -> None:
        """Delete the node and its request, whichever there are."""
        if self.request()[0]:
            self.shell.run(self._gcloud("queued-resources", "delete", "--force"))
        if self.describe().state and not (self.shell.dry_run and self.queued):
            self.shell.run(self._gcloud("tpu-vm", "delete"))
        self.touched = False

    def copy(self, source: Path, target: str) -> None:
        """To every worker; what fails shows in what is done with it."""
        self.shell.stream(self._gcloud("tpu-vm", "scp", "--worker=all", name=[str(source), f"{self.name}:{target}"]))

    def ssh(self, worker: str, command: str, pretend: str = "") -> str:
        """Run a shell command on a worker, or on "all"; returns the end of the output, because the exit code isn't every worker's."""
        return self.shell.stream(self._gcloud("tpu-vm", "ssh", f"--worker={worker}", f"--command={command}"), pretend=pretend).stdout

    def _create(self) -> None:
        for attempt in range(self.args.tries):
            try:
                self.touched = True
                if self.queued:
                    if self.request()[0] not in WAITING:  # of an earlier start
                        self._request()
                    self._wait_for_request()
                else:
                    self._created("tpu-vm", f"--version={self._runtime()}")
                return
            except NoCapacityError as error:
                self.delete()
                if attempt + 1 == self.args.tries:
                    raise LaunchError(f"{error}. Tried {attempt + 1} times; try another LPO_ZONE, or wait in the queue: QUEUED=1") from None
                pause = common.backoff(self.args.pause_s, attempt)
                say(f"{error}; trying again in {pause:.0f} s")
                self.shell.sleep(pause)
            except LaunchError:
                self.delete()  # half a TPU costs as much as a whole one
                raise

    def _request(self) -> None:
        flags = [f"--node-id={self.name}", f"--runtime-version={self._runtime()}", f"--valid-until-duration={self.args.wait_min}m"]
        self._created("queued-resources", *flags, *(["--spot"] if self.args.spot else []))

    def _wait_for_request(self) -> None:
        since, seen = time.monotonic(), ""
        while True:
            state, why = self.request()
            if state != seen:
                say(f"{self.name}: {state or 'no request'} after {(time.monotonic() - since) / 60:.0f} min")
                seen = state
            if state == "ACTIVE":
                return
            if state not in WAITING:
                raise NoCapacityError(f"the request for {self.name} is {state or 'gone'}{why and ': ' + why}")
            self._check_time(since, state)
            self.shell.sleep(self.args.pause_s)

    def _check_time(self, since: float, state: str) -> None:
        if time.monotonic() - since >= 60 * self.args.wait_min:
            raise LaunchError(f"{self.name} is still {state} after {self.args.wait_min} min: WAIT_MIN=... for longer, or another LPO_ZONE")

    def _created(self, group: str, *flags: str) -> None:
        assert self.wanted is not None
        done = self.shell.stream(self._gcloud(group, "create", *self.wanted.gcloud_flags(), *flags))
        if done.returncode:
            reason = common.last_line(done.stdout)
            out_of_chips = NO_CAPACITY.search(done.stdout) and "quota" not in done.stdout.lower()
            raise (NoCapacityError if out_of_chips else LaunchError)(f"{self.wanted.name} wasn't created: {reason}")

    def _runtime(self) -> str:
        assert self.wanted is not None
        if self.wanted.facts.runtime is None:
            raise LaunchError(f"{self.wanted.generation} has no TPU VMs, only GKE serves it: make train-gke")
        return self.wanted.facts.runtime

    def _gcloud(self, group: str, verb: str, *flags: str, name: list[str] | None = None) -> list[str]:
        return ["gcloud", "compute", "tpus", group, verb, *(name or [self.name]), *self._where, *flags]

    def _facts(self, group: str, pretend: dict) -> dict:
        """What Google Cloud says about the node or its request; {} if there is none."""
        command, none = self._gcloud(group, "describe", "--format=json"), r"NOT_FOUND|not found"
        patience = {"tries": self.args.tries, "pause_s": self.args.pause_s}
        return json.loads(self.shell.ask_patiently(command, pretend=json.dumps(pretend), none=none, **patience) or "{}")


class Run:
    """One `lpo train` on all workers of a TPU, through preemptions."""

    def __init__(self, tpu: Tpu, bucket: str, snapshot: tuple[str, str]):
        self.tpu, self.shell, self.args, self.bucket, self.snapshot = tpu, tpu.shell, tpu.args, bucket, snapshot

    def to_the_end(self) -> int:
        """Run, and after each preemption run again from the checkpoint. Returns `lpo train`'s exit code.

        Raises:
          LaunchError: it was preempted too often, or the TPU can't be had or set up.
        """
        for attempt in range(self.args.restarts + 1):
            try:
                node = self.tpu.ensure()
                if attempt or "worker.sh: running" not in self.tpu.ssh("0", "bash lpo-jax/launch/worker.sh state || true"):
                    self._install(node)
                    self._start(node)
                code = self._follow()
                if code in (0, 2) or (code != PREEMPTED and self._still_there()):  # 2: what lpo itself says is wrong
                    return code
                gone = f"lpo train ended with {code} on a TPU that is gone"
                reason = "lpo train has saved its state and stopped" if code == PREEMPTED else gone
            except PreemptedError as error:
                reason = str(error)
            if attempt < self.args.restarts:
                pause = common.backoff(self.args.pause_s, attempt)
                say(f"preempted: {reason}. Restart {attempt + 1} of at most {self.args.restarts} in {pause:.0f} s")
                self.shell.sleep(pause)
        raise LaunchError(
            f"preempted {self.args.restarts + 1} times, RESTARTS={self.args.restarts}; the same command goes on from the checkpoint"
        )

    def _install(self, node: Node) -> None:
        commit, tree = self.snapshot
        packed = f"lpo-jax-{tree}.tar.gz"  # by content: a copy that failed can't go unnoticed
        unpack = f"rm -rf lpo-jax && mkdir lpo-jax && tar -xzf {packed} -C lpo-jax"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / packed
            common.archive(self.shell, commit, path)
            token = Path(folder) / "hf-token"
            if os.environ.get("HF_TOKEN"):
                token.touch(mode=0o600)
                token.write_text(os.environ["HF_TOKEN"])
            for attempt in range(self.args.tries):
                self.tpu.copy(path, packed)
                if token.exists():
                    self.tpu.copy(token, HF_TOKEN_FILE)
                if self._all("ready", f"{unpack} && bash lpo-jax/launch/worker.sh setup {shlex.quote(self.bucket)}", node):
                    return
                self._gone_or(f"setting up the workers failed, try {attempt + 1} of {self.args.tries}", attempt)
        raise LaunchError(f"not every worker could be set up, see above; ssh: gcloud compute tpus tpu-vm ssh {self.tpu.name}")

    def _start(self, node: Node) -> None:
        command = shlex.join(["bash", "lpo-jax/launch/worker.sh", "start", self.args.config, *self.args.overrides])
        if not self._all("started", command, node):
            self._gone_or("the run didn't start everywhere", 0)
            raise LaunchError("the run didn't start on every worker, see above")

    def _follow(self) -> int:
        lost, lines = 0, "+1"
        while True:
            since = time.monotonic()
            shown = self.tpu.ssh("0", f"bash lpo-jax/launch/worker.sh follow {lines}", pretend="worker.sh: over 0")
            if ended := re.findall(r"worker\.sh: over (\d+)", shown):
                return int(ended[-1])
            if "worker.sh: none" in shown:
                raise PreemptedError("worker 0 no longer knows of the run; it may have restarted")
            if time.monotonic() - since > 300:  # it had been following for a while
                lost = 0
            if lost == self.args.tries:
                raise LaunchError(
                    f"the connection to {self.tpu.name} was lost {lost + 1} times; the run goes on, the same command follows it"
                )
            self._gone_or("lost the connection, following again", lost)
            lost, lines = lost + 1, "20"

    def _all(self, word: str, command: str, node: Node) -> bool:
        """Run on all workers; whether each of them said `word`."""
        shown = self.tpu.ssh("all", command, pretend=f"worker.sh: {word}\n" * node.workers)
        return shown.count(f"worker.sh: {word}") == node.workers

    def _gone_or(self, what: str, attempt: int) -> None:
        """Wait a little; a TPU that is gone by then was preempted."""
        say(what)
        self.shell.sleep(common.backoff(self.args.pause_s, attempt))
        if self.tpu.describe().state != READY:
            raise PreemptedError(f"{self.tpu.name} is gone ({what})")

    def _still_there(self) -> bool:
        self.shell.sleep(self.args.pause_s)  # the others' processes die before Google Cloud says that the slice is being taken
        return self.tpu.describe().state == READY


def check_ssh_agent(shell: Shell, checks: Checks) -> None:
    """gcloud refuses several workers when the ssh agent holds keys but not its own, and would say so only when the TPU is there."""
    key = Path.home() / ".ssh/google_compute_engine"
    known = shell.ask(["ssh-add", "-l"])
    if known.returncode or shell.dry_run:  # an empty agent, or none, is fine
        return
    mine = shell.ask(["ssh-keygen", "-lf", str(key)])
    if mine.returncode:
        checks.missing.append(f"gcloud's ssh key, which your ssh agent must hold: ssh-keygen -t rsa -f {key} && ssh-add {key}")
    elif mine.stdout.split()[1] not in known.stdout:
        checks.missing.append(f"gcloud's ssh key in your ssh agent: ssh-add {key}")


def up(args: argparse.Namespace) -> int:
    shell = Shell(args.dry_run)
    if slices.on_tpu():
        say("this is a TPU host: training here")
        shell.become(["lpo", "train", args.config, *args.overrides])
        return 0
    checks = Checks(args.dry_run)
    project = checks.variable("LPO_PROJECT", "your Google Cloud project")
    zone = checks.variable("LPO_ZONE", "a zone where the project has TPU quota, e.g. us-west4-a")
    bucket = checks.variable("LPO_BUCKET", "a Cloud Storage bucket for data and checkpoints, without gs://")
    checks.program("gcloud", "https://cloud.google.com/sdk/docs/install")
    config = checks.collect(lambda: common.read_config(args.config, args.overrides))
    found = checks.collect(lambda: slices.of_run(args.tpu, config, args.overrides))
    if not checks.missing or args.dry_run:
        common.check_cloud(shell, checks, bucket, project, config)
        if os.environ.get("SSH_AUTH_SOCK") and found and found[0].hosts > 1:
            check_ssh_agent(shell, checks)
    checks.finish()
    if found is None or config is None:  # only a dry run comes here without
        return 2
    wanted, args.overrides = found
    if not args.skip_plan:
        common.plan(shell, args.config, args.overrides)
    snapshot = common.snapshot(shell, args.config)
    common.upload(shell, config, bucket)

    tpu = Tpu(shell, args, project, zone, wanted)
    code = None
    try:
        code = Run(tpu, bucket, snapshot).to_the_end()
    finally:
        _leave(tpu, failed=code != 0)
    if code:
        say(f"lpo train ended with exit code {code}; its log is above")
    else:
        say(f"done. The report: gcloud storage cp {common.run_url(config, bucket)}/report.html .")
    return code


def _leave(tpu: Tpu, failed: bool) -> None:
    """Delete the TPU if that was asked for, else say that it is still there."""
    if not tpu.touched:
        return
    if tpu.args.delete == "always" or (tpu.args.delete == "success" and not failed):
        tpu.delete()
    elif not tpu.shell.dry_run:
        say(f"{tpu.name} may still exist and cost money. Delete it: make train-tpu-down JOB={tpu.name}")


def down(args: argparse.Namespace) -> int:
    shell, checks = Shell(args.dry_run), Checks(args.dry_run)
    project = checks.variable("LPO_PROJECT", "your Google Cloud project")
    zone = checks.variable("LPO_ZONE", "the TPU's zone")
    checks.program("gcloud", "https://cloud.google.com/sdk/docs/install")
    checks.finish()
    tpu = Tpu(shell, args, project, zone, None)
    tpu.touched = True
    tpu.delete()
    say(f"nothing is left of {tpu.name}")
    return 0


def main() -> int:
    parser = common.cloud_parser("tpu", __doc__, EXAMPLES)
    parser.add_argument("--spot", action="store_true", help="a cheap TPU that may be taken away, from the queue")
    parser.add_argument("--queued", action="store_true", help="wait in the queue for capacity")
    parser.add_argument("--wait-min", type=whole(0), default=360, help="minutes to wait in the queue (default: 360)")
    parser.add_argument("--tries", type=whole(1), default=5, help="tries for what may fail by chance: capacity, ssh (default: 5)")
    args = common.parse(parser)
    return run_command("train-tpu", lambda: down(args) if args.down else up(args))


if __name__ == "__main__":
    sys.exit(main())
