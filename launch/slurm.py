"""Submit a config to SLURM from a login node and follow its log: one process a node, or with --gpus one a GPU. The checkout with its .venv, the
data and the run_dir must lie on a disk that all nodes see. A preempted job is queued again and goes on from its checkpoint (launch/slurm.sbatch),
and so is one that nears its time limit. Ctrl-C leaves the job alone; scancel JOB ends it. Nothing of it needs this terminal.

environment, all optional:
  LPO_PARTITION, LPO_ACCOUNT, LPO_QOS, LPO_TIME   passed to sbatch as --partition, --account, --qos, --time
  HF_TOKEN                                        for gated models; the job inherits it, as all of your environment
"""

import argparse
import os
import sys
from pathlib import Path

from foundation.commands import number, whole
from foundation.errors import run_command
from launch import common, preflight
from launch.common import Checks, LaunchError, Shell, say

EXAMPLES = """\
examples:
  make train-slurm CONFIG=configs/qwen2_5_coder_7b.yaml GPUS=8
  make train-slurm CONFIG=configs/lpo_hf.yaml NODES=4 GPUS=2 ARGS="model.path=MODEL data.path=data/disco" DRY_RUN=1
"""
FLAGS = {"LPO_PARTITION": "--partition", "LPO_ACCOUNT": "--account", "LPO_QOS": "--qos", "LPO_TIME": "--time"}
WAITING = {"", "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "RESIZING", "SUSPENDED", "PREEMPTED"}
WAITING |= {"REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED"}


def up(args: argparse.Namespace) -> int:
    shell, checks = Shell(args.dry_run), Checks(args.dry_run)
    for name in ("sbatch", "squeue", "sacct"):
        checks.program(name, "run this on a login node of the cluster")
    if config := checks.collect(lambda: common.load(args.config, args.overrides)):
        preflight.check_run(shell, checks, config, args.nodes * (args.gpus or 1))
    checks.finish()

    logs = Path("runs/slurm")
    if not args.dry_run:
        logs.mkdir(parents=True, exist_ok=True)  # sbatch doesn't make it, and the job would end without a word
    layout = [f"--nodes={args.nodes}", f"--ntasks-per-node={args.gpus or 1}", *([f"--gpus-per-node={args.gpus}"] if args.gpus else [])]
    site = [f"{flag}={os.environ[name]}" for name, flag in FLAGS.items() if os.environ.get(name)]
    named = [f"--job-name={args.name}", f"--output={logs}/%x-%j.log"]
    export = f"--export=ALL,JAX_PLATFORMS={'cuda' if args.gpus else 'cpu'},LPO_RESTARTS={args.restarts}"
    command = ["sbatch", "--parsable", *named, *layout, *site, export, "launch/slurm.sbatch", args.config, *args.overrides]
    done = shell.ask(command, pretend="JOB")
    if done.returncode:
        raise LaunchError(f"sbatch: {common.last_line(done.stderr)}")
    job = done.stdout.strip().partition(";")[0]  # JOB, or JOB;CLUSTER
    log = logs / f"{args.name}-{job}.log"
    say(f"job {job}, log {log}; Ctrl-C stops following, scancel {job} the job")
    return follow(shell, job, log, args.pause_s)


def follow(shell: Shell, job: str, log: Path, pause_s: float) -> int:
    """Print the log as it grows, through requeues, until the job is over. Returns 0 if it completed."""
    seen, offset, unknown = "", 0, 0
    while True:
        state = _state(shell, job)
        unknown = 0 if state else unknown + 1
        if unknown == 10:
            raise LaunchError(f"neither squeue nor sacct knows job {job} any more; its log: {log}")
        if state != seen:
            say(f"job {job}: {state or 'not known yet'}")
            seen = state
        if log.is_file():
            with log.open("rb") as file:
                file.seek(offset)
                sys.stdout.buffer.write(file.read())
                sys.stdout.buffer.flush()
                offset = file.tell()
        if state not in WAITING:
            return 0 if state == "COMPLETED" else 1
        shell.sleep(pause_s)


def _state(shell: Shell, job: str) -> str:
    """The job's state while it is queued or runs, else the one it ended with."""
    queued = shell.ask(["squeue", "--noheader", f"--jobs={job}", "--format=%T"], quiet=True)
    if not queued.returncode and queued.stdout.strip():  # squeue forgets a job soon after its end
        return queued.stdout.split()[0]
    command = ["sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={job}", "--format=State"]
    ended = shell.ask(command, pretend="COMPLETED", quiet=True)
    states = ended.stdout.split()
    return states[-1] if not ended.returncode and states else ""


def main() -> int:
    parser = common.parser("slurm", __doc__, EXAMPLES, "of the job", "a YAML file, e.g. configs/lpo_hf.yaml")
    parser.add_argument("--nodes", type=whole(1), default=1, help="(default: 1)")
    parser.add_argument("--gpus", type=whole(0), default=0, help="GPUs a node, each with a process of its own (default: 0, CPUs)")
    parser.add_argument(
        "--restarts", type=whole(0), default=20, help="times that lpo train is queued again after it has saved (default: 20)"
    )
    parser.add_argument("--pause-s", type=number(), default=10, help="seconds between looks at the queue (default: 10)")
    args = common.parse(parser)
    return run_command("train-slurm", lambda: up(args))


if __name__ == "__main__":
    sys.exit(main())
