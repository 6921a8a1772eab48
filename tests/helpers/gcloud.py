"""A stand-in for gcloud that keeps state as the cloud does, written from its documented CLI: TPU VMs, queued resources, a bucket, quota, sign-in.

A VM's worker is a home directory in which what comes by ssh is really run: launch/worker.sh is the real one, `lpo` a stand-in that counts steps.
Run as a program it is `gcloud`; `Cloud` is what a test sees of it. What is in $CLOUD:
  state.json  nodes, requests, quota and all else     bucket/  the bucket     nodes/NAME/WORKER/  homes     bin/  what a VM has installed
"""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

CHIPS = {"v5litepod-4": (4, 1, "2x2"), "v5litepod-16": (16, 4, "4x4")}  # chips, hosts, topology
STATE = {"signed_in": True, "zones": ["us-west4-a"], "quota": 8, "nodes": {}, "requests": {}, "capacity": True, "connected": True}
ON_A_VM = {
    "mountpoint": '#!/bin/sh\ntest -L "$2"\n',
    "gcsfuse": '#!/bin/sh\nfor last; do :; done\nrmdir "$last" && ln -s "$CLOUD/bucket" "$last"\n',
    "uv": '#!/bin/sh\ncase $1 in venv) mkdir -p "$4/bin" && cp "$CLOUD"/bin/lpo* "$4/bin/" && touch "$4/bin/python" && chmod +x "$4"/bin/*;; esac\n',
    # Answers who shows its key, and no others; a test holds it from listening.
    "server": f"""#!{sys.executable} -SE
import http.server, os, signal, sys, time
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.headers["Authorization"] == "Bearer " + os.environ["LPO_API_KEY"] else 401)
        self.end_headers()
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
while os.path.exists(os.environ["CLOUD"] + "/hold"): time.sleep(0.02)
print("serving", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Answer).serve_forever()
""",
    "lpo-eval": """#!/usr/bin/env bash
[[ ${HOME##*/} == 0 ]] || exit 0
while [[ $1 != -o ]]; do shift; done
mkdir -p "$2" && echo '{}' >"$2/scores.json" && echo "judged"
""",
    # Six steps with a checkpoint each, in worker 0; a test holds it with a file: hold anywhere, hold-in-checkpoint within the third.
    "lpo": """#!/usr/bin/env bash
[[ ${HOME##*/} == 0 ]] || exit 0
[[ $1 != serve ]] || exec "$CLOUD/bin/server" "$@"
run_dir=runs/tiny_cpu
for word in "$@"; do [[ $word != run_dir=* ]] || run_dir=${word#*=}; done
mkdir -p "$run_dir"
step=$(cat "$run_dir/checkpoint" 2>/dev/null || echo 0)
save() { echo "$step" >"$run_dir/half" && mv "$run_dir/half" "$run_dir/checkpoint"; }
trap 'save; exit 75' TERM
echo "from step $step: $*" >>"$run_dir/starts"
while ((step < 6)); do
  while [[ -e $CLOUD/hold ]]; do sleep 0.02; done
  ((step += 1))
  echo "step $step"
  echo half >"$run_dir/half"
  if ((step == 3)); then while [[ -e $CLOUD/hold-in-checkpoint ]]; do sleep 0.02; done; fi
  save
done
echo finished >"$run_dir/report.html"
""",
}


class Cloud:
    """What a test does to the cloud, and sees of it."""

    def __init__(self, home: Path):
        self.home, self.bucket = home, home / "bucket"
        for folder in (self.bucket, home / "nodes", home / "bin"):
            folder.mkdir(parents=True)
        for name, text in ON_A_VM.items():
            (home / "bin" / name).write_text(text)
            (home / "bin" / name).chmod(0o755)
        (home / "state.json").write_text(json.dumps(STATE))

    @contextmanager
    def state(self):
        """The state, to look at and to change."""
        with (self.home / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = self.home / "state.json"
            state = json.loads(file.read_text())
            yield state
            new = self.home / "state.new"
            new.write_text(json.dumps(state))
            new.replace(file)  # Ctrl-C may end whoever writes

    def nodes(self) -> dict[str, str]:
        """name -> what it says of itself."""
        with self.state() as state:
            return {name: node["state"] for name, node in state["nodes"].items()}

    def change(self, **what) -> None:
        with self.state() as state:
            state.update(what)

    def hold(self, name: str = "hold") -> Path:
        (self.home / name).touch()
        return self.home / name

    def take(self, name: str, says: str = "PREEMPTED") -> None:
        """Preempt a node: its processes and its disk are gone; its name, its quota and what it `says` stay until it is deleted."""
        with self.state() as state:
            node = state["nodes"][name]
            node |= {"state": says, "there": False}
            if node["spot"]:
                state["requests"][name]["state"] = "SUSPENDED"
            self.wipe(name)

    def wipe(self, name: str) -> None:
        for pid in (self.home / "nodes" / name).glob("*/lpo-state/pid"):
            with suppress(ProcessLookupError):
                os.killpg(int(pid.read_text()), signal.SIGKILL)
        shutil.rmtree(self.home / "nodes" / name, ignore_errors=True)

    def reached(self, name: str) -> bool:
        with self.state() as state:
            return state["connected"] and state["nodes"].get(name, {}).get("there", False)


def main(argv: list[str]) -> int:
    cloud = object.__new__(Cloud)
    cloud.home = Path(os.environ["CLOUD"])
    end = argv.index("--") if "--" in argv else len(argv)
    argv, for_ssh = argv[:end], argv[end + 1 :]
    words = [word for word in argv if not word.startswith("--")]
    flags = dict(word[2:].partition("=")[::2] for word in argv if word.startswith("--"))
    with (cloud.home / "calls").open("a") as calls:
        calls.write(" ".join([*argv, *for_ssh]) + "\n")
    if words[:2] == ["auth", "list"]:  # what is on this disk; whether it still holds nobody asks
        print("me@example.com")
        return 0
    with cloud.state() as state:
        if not state["signed_in"]:
            return said("There was a problem refreshing your current auth tokens: ('invalid_grant: Token has been expired or revoked.')\nPlease run:\n\n  $ gcloud auth login")  # fmt: skip
    if words[0] == "storage":
        return storage(cloud.home / "bucket", words[1:])
    with cloud.state() as state:
        if flags["zone"] not in state["zones"]:
            return said(f"PERMISSION_DENIED: Location {flags['zone']} is not found or access is unauthorized.")
    if for_ssh:
        threading.Thread(target=forward, args=for_ssh[1].split(":"), daemon=True).start()
    group, verb, *names = words[2:]
    if verb == "accelerator-types":
        return 0 if names[1] in CHIPS else said(f"NOT_FOUND: accelerator type {names[1]}")
    return {"tpu-vm": tpu_vm, "queued-resources": queued}[group](cloud, verb, names, flags)


def said(text: str) -> int:
    print(f"ERROR: (gcloud) {text}", file=sys.stderr)
    return 1


def forward(host: str, port: str, there: str, its: str) -> None:
    """ssh -L: who connects here is connected there, as long as this process lives."""
    with socket.create_server((host, int(port))) as server:
        while True:
            client, _ = server.accept()
            try:
                peer = socket.create_connection((there, int(its)))
            except OSError:
                client.close()
                continue
            for one, other in ((client, peer), (peer, client)):
                threading.Thread(target=passed_on, args=(one, other), daemon=True).start()


def passed_on(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)


def storage(bucket: Path, words: list[str]) -> int:
    if words[:2] == ["buckets", "describe"]:
        print("True")
        return 0
    verb, *places = words
    *sources, target = [bucket / place.removeprefix("gs://bkt/") if place.startswith("gs://") else Path(place) for place in places]
    if verb in ("cp", "rsync"):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(sources[0], target, dirs_exist_ok=True) if verb == "rsync" else shutil.copy(sources[0], target)
    elif not target.exists():
        return said("The following URLs matched no objects or files")
    elif verb == "cat":
        print(target.read_text())
    return 0


def made(state: dict, name: str, kind: str, spot: bool) -> str:
    """Put a node there; returns what is in the way."""
    chips, workers, topology = CHIPS[kind]
    if name in state["nodes"]:
        return f"ALREADY_EXISTS: Resource 'nodes/{name}' already exists"
    if sum(node["chips"] for node in state["nodes"].values()) + chips > state["quota"]:
        return f"RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProjectPerZone' has been exceeded. Limit: {state['quota']} in zone us-west4-a."
    state["nodes"][name] = {"state": "CREATING", "chips": chips, "workers": workers, "topology": topology, "spot": spot, "there": False}
    return ""


def ready(cloud: Cloud, state: dict, name: str) -> None:
    if node := state["nodes"].get(name):
        for worker in range(node["workers"]):
            (cloud.home / "nodes" / name / str(worker)).mkdir(parents=True)
        node |= {"state": "READY", "there": True}


def tpu_vm(cloud: Cloud, verb: str, names: list[str], flags: dict[str, str]) -> int:
    if verb == "scp":
        source, (name, _, target) = names[0], names[1].partition(":")
        if not cloud.reached(name):
            return said("Connection timed out")
        for worker in (cloud.home / "nodes" / name).iterdir():
            shutil.copy(source, worker / target)
        return 0
    name = names[0]
    if verb == "ssh":
        return ssh(cloud, name, flags["worker"], flags["command"])
    with cloud.state() as state:
        if verb == "create":
            if why := made(state, name, flags["accelerator-type"], spot=False):
                return said(why)
        elif (node := state["nodes"].get(name)) is None:
            return said("NOT_FOUND: Resource 'nodes' was not found")
        elif verb == "delete":
            cloud.wipe(name)
            del state["nodes"][name]
        else:
            facts = {
                "state": node["state"],
                "networkEndpoints": [{}] * node["workers"],
                "acceleratorConfig": {"topology": node["topology"]},
            }
            print(json.dumps(facts))
    if verb == "create":
        time.sleep(0.3)
        with cloud.state() as state:
            ready(cloud, state, name)
    return 0


def queued(cloud: Cloud, verb: str, names: list[str], flags: dict[str, str]) -> int:
    """A request goes a step further each time that it is looked at, while there is capacity."""
    (name,) = names
    with cloud.state() as state:
        found = state["requests"].get(name)
        if verb == "create":
            if found:
                return said(f"ALREADY_EXISTS: Resource 'queuedResources/{name}' already exists")
            state["requests"][name] = {"state": "WAITING_FOR_RESOURCES", "kind": flags["accelerator-type"], "spot": "spot" in flags}
        elif found is None:
            return said("NOT_FOUND: Resource 'queuedResources' was not found")
        elif verb == "delete":
            del state["requests"][name]
            if "force" in flags and name in state["nodes"]:
                cloud.wipe(name)
                del state["nodes"][name]
        else:
            if state["capacity"] and found["state"] == "WAITING_FOR_RESOURCES":
                found["state"] = "PROVISIONING"
            elif found["state"] == "PROVISIONING":
                found["state"] = "FAILED" if made(state, name, found["kind"], found["spot"]) else "ACTIVE"
                ready(cloud, state, name)
            print(json.dumps({"state": {"state": found["state"]}}))
    return 0


def ssh(cloud: Cloud, name: str, which: str, command: str) -> int:
    """Run it on a worker, or on all one after another, as long as they can be reached."""
    if not cloud.reached(name):
        return said("Connection timed out")
    code = 0
    for home in sorted((cloud.home / "nodes" / name).iterdir()):
        if which in ("all", home.name):
            env = {"HOME": str(home), "CLOUD": str(cloud.home), "PATH": f"{cloud.home}/bin:/usr/bin:/bin"}
            with subprocess.Popen(["/bin/bash", "-c", command], cwd=home, env=env, start_new_session=True) as session:
                try:
                    while session.poll() is None and cloud.reached(name):
                        time.sleep(0.03)
                finally:  # the session ends with its connection, what it has put into a session of its own doesn't
                    if session.poll() is None:
                        os.killpg(session.pid, signal.SIGKILL)
                        code = 255
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
