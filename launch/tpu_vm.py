"""One Cloud TPU VM by name: what there is of it, made, waited for, deleted, reached over ssh. What trains is never deleted here unasked."""

import argparse
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

from launch import common
from launch.common import LaunchError, Shell, say
from launch.slices import Slice

READY, WAITING = "READY", {"ACCEPTED", "CREATING", "PROVISIONING", "WAITING_FOR_RESOURCES"}
STARTING = {"CREATING", "STARTING", "RESTARTING", "REPAIRING"}
TAKEN = {"SUSPENDING", "SUSPENDED", "FAILED"}  # a request whose node was preempted, though the node may go on saying READY
NO_CAPACITY = re.compile(r"no more capacity|stockout|RESOURCE_EXHAUSTED|UNAVAILABLE|internal error|\"code\": ?(8|13|14)\b", re.IGNORECASE)
EXISTS = re.compile(r"ALREADY_EXISTS|already exists")


class NoCapacityError(LaunchError):
    """Google Cloud has no such TPU free now; later it may."""


class ExistsError(LaunchError):
    """Another launcher has made it meanwhile."""


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
        self.made = False  # by this launcher, just now: nothing runs there yet
        self.may_train = False  # and so it mustn't be deleted
        self._where = [f"--project={project}", f"--zone={zone}", "--quiet"]

    def ensure(self, node: Node | None = None) -> Node:
        """The node, ready: the one that is there (`node`, if it was looked for just now), or a new one."""
        self.made = False
        node = self._started(node or self.describe())
        if not self.alive(node):
            request = self.request()[0]
            if node.state or request not in {"", *WAITING}:
                say(f"{self.name} is {node.state or request}: deleting it to create it again")
                self.delete()
            self._create()
            node = self._started(self.describe())
        self.touched = True
        if node.state != READY:
            raise PreemptedError(f"{self.name} is {node.state or 'gone'} right after its creation")
        if self.wanted and node.topology not in {"", self.wanted.topology}:
            raise LaunchError(
                f"{self.name} exists with topology {node.topology}, not {self.wanted.topology}: choose another JOB name, or delete it"
            )
        say(f"{self.name} is ready: {node.workers} worker{'s' * (node.workers != 1)}")
        return node

    def alive(self, node: Node) -> bool:
        """Whether a node is there: it says so itself, and so does the request that it comes from."""
        return node.state == READY and not (self.queued and self.request()[0] in TAKEN)

    def _started(self, node: Node) -> Node:
        since = time.monotonic()
        while node.state in STARTING:
            self._check_time(since, node.state)
            self.shell.sleep(self.args.pause_s)
            node = self.describe()
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

    def ssh(self, worker: str, command: str, pretend: str = "", quiet: bool = False, tunnel: tuple[int, int] | None = None) -> str:
        """Run a shell command on a worker, or on "all"; returns the end of the output, because the exit code isn't every worker's. `quiet`: it isn't
        shown. `tunnel`: while it runs, this machine's first port is the worker's second."""
        run = self.shell.ask if quiet else self.shell.stream
        here_to_there = ["--", "-L", "127.0.0.1:{}:127.0.0.1:{}".format(*tunnel), "-o", "ExitOnForwardFailure=yes"] if tunnel else []
        return run([*self.ssh_command(worker, command), *here_to_there], pretend=pretend).stdout

    def ssh_command(self, worker: str, command: str) -> list[str]:
        return self._gcloud("tpu-vm", "ssh", f"--worker={worker}", f"--command={command}")

    def check_zone(self) -> str | None:
        """What is wrong with the zone, if it has no such TPUs."""
        if self.wanted is None or self.wanted.facts.runtime is None or self.wanted.topology not in self.wanted.shapes:
            return None
        kind = self.wanted.accelerator_type
        found = self.shell.ask(self._gcloud("tpu-vm accelerator-types", "describe", name=[kind]))
        if not found.returncode:
            return None
        return f"LPO_ZONE: no {kind} there for this project ({common.last_line(found.stderr)}); see gcloud compute tpus locations list"

    def _create(self) -> None:
        for attempt in range(self.args.tries):
            try:
                self.touched = True
                if self.queued:
                    if self.request()[0] not in {*WAITING, "ACTIVE"} or self.shell.dry_run:  # else an earlier start's is taken up
                        self._request()
                    self._wait_for_request()
                else:
                    self._created("tpu-vm", f"--version={self._runtime()}")
                self.made = True
                return
            except ExistsError as error:
                say(str(error))
                return
            except NoCapacityError as error:
                self._clear()
                if attempt + 1 == self.args.tries:
                    raise LaunchError(f"{error}. Tried {attempt + 1} times; try another LPO_ZONE, or wait in the queue: QUEUED=1") from None
                pause = common.backoff(self.args.pause_s, attempt)
                say(f"{error}; trying again in {pause:.0f} s")
                self.shell.sleep(pause)
            except LaunchError:
                self._clear()  # half a TPU costs as much as a whole one
                raise

    def _clear(self) -> None:
        """Delete what a creation that failed has left. A node that is ready is another launcher's, and stays."""
        try:
            if self.describe().state != READY:
                self.delete()
        except LaunchError as error:
            say(f"what is left of {self.name} couldn't be deleted: {error}")

    def _request(self) -> None:
        flags = [f"--node-id={self.name}", f"--runtime-version={self._runtime()}", f"--valid-until-duration={self.args.wait_min}m"]
        try:
            self._created("queued-resources", *flags, *(["--spot"] if self.args.spot else []))
        except ExistsError as error:
            say(str(error))

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
            if EXISTS.search(done.stdout):
                raise ExistsError(f"{self.name} is being made by another launcher: taking it up")
            reason, quota = common.last_line(done.stdout), "quota" in done.stdout.lower()
            out_of_chips = NO_CAPACITY.search(done.stdout) and not quota
            holders = f". What holds it, preempted nodes too: gcloud compute tpus tpu-vm list {' '.join(self._where)}" if quota else ""
            raise (NoCapacityError if out_of_chips else LaunchError)(f"{self.wanted.name} wasn't created: {reason}{holders}")

    def _runtime(self) -> str:
        assert self.wanted is not None
        if self.wanted.facts.runtime is None:
            raise LaunchError(f"{self.wanted.generation} has no TPU VMs, only GKE serves it: make train-gke")
        return self.wanted.facts.runtime

    def _gcloud(self, group: str, verb: str, *flags: str, name: list[str] | None = None) -> list[str]:
        return ["gcloud", "compute", "tpus", *group.split(), verb, *(name or [self.name]), *self._where, *flags]

    def _facts(self, group: str, pretend: dict) -> dict:
        """What Google Cloud says about the node or its request; {} if there is none."""
        command, none = self._gcloud(group, "describe", "--format=json"), r"NOT_FOUND|not found"
        patience = {"tries": self.args.tries, "pause_s": self.args.pause_s}
        return json.loads(self.shell.ask_patiently(command, pretend=json.dumps(pretend), none=none, **patience) or "{}")
