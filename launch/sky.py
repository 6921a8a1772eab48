"""Hand a command to SkyPilot as a managed job on a TPU slice: it finds the slice in any zone, goes on after preemptions, outlives your laptop, and
takes the machines down at the end. From here:
  1. check job and environment, once for all that is wrong      2. ask `lpo plan` whether a training fits; stop where it doesn't
  3. upload the job's inputs to the bucket                      4. write SkyPilot's task file and the tree that travels to runs/sky/NAME/
  5. `sky jobs launch`, which shows what it costs and doesn't wait

The bucket is the job's working directory, as on TPU VMs, and a training goes on from its checkpoint there: after a preemption, and when it has ended
with exit code 75. SkyPilot's controller, a small machine of its own, costs a little as long as it is there (sky down sky-jobs-controller-...).
A job's name follows what it writes; one that is under way with other settings is refused.

environment:
  LPO_BUCKET   bucket (no gs://) with a hierarchical namespace
  LPO_PROJECT  Google Cloud project
  LPO_ZONE     optional: slices are looked for in the zones of its region alone (a bucket elsewhere costs by the GiB); without it anywhere
  HF_TOKEN     optional, for gated models; one of SkyPilot's secrets, never written or printed
"""

import argparse
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from foundation.files import Json, write_text
from launch import arguments, common, preflight, slices
from launch.common import PREEMPTED, Checks, LaunchError, Shell, say
from launch.job import Job
from launch.slices import Slice
from lpo_jax.sharding import topology_size

EXAMPLES = """\
examples:
  make train-sky CONFIG=configs/pods/qwen2_5_coder_7b_v5e_4x4.yaml SPOT=1 ARGS="data.path=data/disco run_dir=runs/qwen"
  make eval-sky TPU=v5e:2x4 SPOT=1 ARGS="--benchmark securityeval --data dataset.jsonl --completions runs/qwen -n 5 -o evals/qwen"
  make train-sky CONFIG=configs/pods/codellama_34b_v5p_2x2x4.yaml DRY_RUN=1      (print the task file, launch nothing)
"""


def task(wanted: Slice, job: Job, name: str, spot: bool, bucket: str, zone: str | None, workdir: Path) -> Json:
    """SkyPilot's task, as its YAML holds it: a slice is one node to it, and both scripts run on each of the slice's hosts, in the tree."""
    region = zone and re.match(r"[a-z]+-[a-z]+\d+", zone)
    # The bucket is mounted by us: SkyPilot's own mount may show a host for seconds what another one has changed meanwhile.
    setup = ["bash", "launch/worker.sh", "setup", bucket, *["judges"] * (job.command == "eval")]
    return {
        "name": name,
        "workdir": str(workdir),
        "resources": {
            "infra": f"gcp/{region[0]}" if region else "gcp",
            "accelerators": f"tpu-{wanted.accelerator_type}",
            "accelerator_args": {"runtime_version": wanted.facts.runtime},
            "use_spot": spot,
            # Preemptions are always recovered from; of exit codes only that of a training which was told to stop.
            "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [PREEMPTED]},
        },
        "setup": shlex.join(setup),
        "run": "exec " + shlex.join(["bash", "launch/worker.sh", "exec", *job.argv("@tree")]),
    }


def up(args: argparse.Namespace) -> int:
    shell, checks = Shell(args.dry_run), Checks(args.dry_run)
    bucket = checks.variable("LPO_BUCKET", "a Cloud Storage bucket for data and checkpoints, without gs://")
    project = checks.variable("LPO_PROJECT", "your Google Cloud project")
    zone = os.environ.get("LPO_ZONE")
    checks.program("gcloud", "https://cloud.google.com/sdk/docs/install")
    checks.program("sky", "make .venv/installed-sky, or pip install 'skypilot[gcp]' in an environment of its own; then `sky check gcp`")
    if args.command == "serve":
        checks.wrong.append("serve: a managed job has no tunnel; make serve-tpu, or serve-gke")
    found = checks.collect(lambda: slices.of_job(args.tpu, args.command, args.words))
    if found:
        wanted, job = found
        if wanted.facts.runtime is None:
            checks.wrong.append(f"{wanted.generation} has no TPU VMs, only GKE serves it: make {args.command}-gke")
        checks.collect(lambda: wanted.accelerator_type)
        ask = args.dry_run or not checks.missing
        if ask:
            preflight.check_cloud(shell, checks, bucket, project, job.config, zone or "")
        if job.config:
            preflight.check_tracked(shell, checks, job.given.config)
        preflight.check_job(shell, checks, job, topology_size(wanted.name), bucket, args.dry_run or not checks.missing)
    checks.finish()

    place = Path("runs/sky", args.name)
    file, tree, told = place / "task.yaml", place / "tree", place / "job.json"
    if _under_way(shell, args.name):
        job.check_same(args.name, told.read_text() if told.is_file() else None)
        say(f"{args.name} is under way. Follow it: sky jobs logs --name {args.name}. End it: sky jobs cancel --name {args.name}")
        return 0
    if not args.skip_plan:
        preflight.plan(shell, job, wanted.name, bucket)
    common.upload(shell, job.inputs().values(), bucket, job.folders())
    text = yaml.safe_dump(task(wanted, job, args.name, args.spot, bucket, zone, tree), sort_keys=False, width=1000)
    if args.dry_run:
        print(text, end="")
    else:
        _unpack(shell, tree)
        write_text(file, text)
        write_text(told, job.text())
    secret = ["--secret", "HF_TOKEN"] if os.environ.get("HF_TOKEN") else []  # sky reads its value from the environment
    shell.run(["sky", "jobs", "launch", "--yes", "--detach-run", "--name", args.name, *secret, str(file)])
    say(f"{args.name} needs this machine no more. Follow it: sky jobs logs --name {args.name}. End it: sky jobs cancel --name {args.name}")
    say(f"when it is over: {job.follow_up(bucket)}")
    return 0


def _under_way(shell: Shell, name: str) -> bool:
    """Whether a managed job of this name isn't over.

    Raises:
      LaunchError: SkyPilot doesn't say.
    """
    asked = shell.ask(["sky", "jobs", "queue", "--skip-finished", "--output", "json"], pretend="[]")
    if asked.returncode:
        raise LaunchError(f"sky jobs queue: {common.last_line(asked.stderr or asked.stdout)}")
    start = asked.stdout.find("[")  # in front of it stands what it says of itself
    jobs: list[dict[str, Any]] = json.loads(asked.stdout[start:]) if start >= 0 else []
    return any(name in (job.get("job_name"), job.get("name")) for job in jobs)


def _unpack(shell: Shell, tree: Path) -> None:
    """What travels is git's."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    packed = tree.with_name("tree.tar.gz").absolute()
    common.archive(shell, common.snapshot(shell)[0], packed)
    shell.run(["tar", "-xzf", str(packed), "-C", str(tree)])
    packed.unlink()


def main() -> int:
    return arguments.run(arguments.cloud_parser("sky", __doc__, EXAMPLES), "sky", up)


if __name__ == "__main__":
    sys.exit(main())
