"""Submit a command to SLURM from a login node and follow its log: one process a node, or with --gpus one a GPU. The checkout with its .venv, data,
models and what is written must lie on a disk that all nodes see. A preempted job is queued again and goes on, a training from its checkpoint
(launch/slurm.sbatch), and so is one that nears its time limit. Ctrl-C leaves the job alone, and the same command follows it again; scancel JOB ends
it. A job's name follows what it writes; one that is queued or runs under that name with other settings is never taken for this one. Only a server's
tunnel needs this terminal.

environment, all optional:
  LPO_PARTITION, LPO_ACCOUNT, LPO_QOS, LPO_TIME   passed to sbatch as --partition, --account, --qos, --time
  HF_TOKEN                                        for gated models; the job inherits it, as all of your environment
  LPO_API_KEY                                     serve: the key that clients show, inherited too (needed)
"""

import argparse
import getpass
import os
import socket
import sys
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from foundation.commands import number, whole
from foundation.files import write_text
from launch import arguments, common, job, preflight
from launch.common import Checks, LaunchError, Shell, say
from launch.job import Job

EXAMPLES = """\
examples:
  make train-slurm CONFIG=configs/qwen2_5_coder_7b.yaml GPUS=8
  make train-slurm CONFIG=configs/lpo_hf.yaml NODES=4 GPUS=2 ARGS="model.path=MODEL data.path=data/disco" DRY_RUN=1
  make eval-slurm GPUS=8 ARGS="--benchmark securityeval --data dataset.jsonl --completions runs/disco -n 5 -o evals/disco"
  make serve-slurm GPUS=8 ARGS="--model runs/disco"        (then http://127.0.0.1:8000/v1 on the login node, whose other users need the key)
"""
FLAGS = {"LPO_PARTITION": "--partition", "LPO_ACCOUNT": "--account", "LPO_QOS": "--qos", "LPO_TIME": "--time"}
WAITING = {"", "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "RESIZING", "SUSPENDED", "PREEMPTED"}
WAITING |= {"REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED"}


def up(args: argparse.Namespace) -> int:
    shell, checks = Shell(args.dry_run), Checks(args.dry_run)
    for name in ("sbatch", "squeue", "sacct"):
        checks.program(name, "run this on a login node of the cluster")
    if args.command == "serve":
        preflight.check_key(checks)
    if found := checks.collect(lambda: job.read(args.command, args.words)):
        preflight.check_job(shell, checks, found, args.nodes * (args.gpus or 1))
    checks.finish()
    assert found is not None

    logs = Path("runs/slurm")
    if not args.dry_run:
        logs.mkdir(parents=True, exist_ok=True)  # sbatch doesn't make it, and the job would end without a word
    made = _under_way(shell, args.name, found, logs) or _submitted(shell, args, found, logs)
    log = logs / f"{args.name}-{made}.log"
    say(f"job {made}, log {log}; Ctrl-C stops following, scancel {made} the job")
    return 0 if args.detach else follow(shell, made, log, args.pause_s, found.tunnel(args.port))


def _under_way(shell: Shell, name: str, wanted: Job, logs: Path) -> str | None:
    """The number of this very job, if it is queued or runs.

    Raises:
      LaunchError: another job of this name is, or does.
    """
    asked = shell.ask(["squeue", "--noheader", f"--user={getpass.getuser()}", f"--name={name}", "--format=%i"])
    if asked.returncode:
        raise LaunchError(f"squeue: {common.last_line(asked.stderr)}")
    for found in asked.stdout.split():
        told = logs / f"{name}-{found}.json"
        wanted.check_same(f"{name} (job {found})", told.read_text() if told.is_file() else None)
        say(f"{name} is under way as job {found}: following it")
        return found
    return None


def _submitted(shell: Shell, args: argparse.Namespace, wanted: Job, logs: Path) -> str:
    """The number of the job, submitted."""
    layout = [f"--nodes={args.nodes}", f"--ntasks-per-node={args.gpus or 1}", *([f"--gpus-per-node={args.gpus}"] if args.gpus else [])]
    site = [f"{flag}={os.environ[name]}" for name, flag in FLAGS.items() if os.environ.get(name)]
    named = [f"--job-name={args.name}", f"--output={logs}/%x-%j.log"]
    export = f"--export=ALL,JAX_PLATFORMS={'cuda' if args.gpus else 'cpu'},LPO_RESTARTS={args.restarts}"
    command = ["sbatch", "--parsable", *named, *layout, *site, export, "launch/slurm.sbatch", *wanted.argv()]
    done = shell.ask(command, pretend="JOB")
    if done.returncode:
        raise LaunchError(f"sbatch: {common.last_line(done.stderr)}")
    made = done.stdout.strip().partition(";")[0]  # JOB, or JOB;CLUSTER
    if not args.dry_run:
        write_text(logs / f"{args.name}-{made}.json", wanted.text())
    return made


def follow(shell: Shell, job: str, log: Path, pause_s: float, tunnel: tuple[int, int] | None) -> int:
    """Print the log as it grows, through requeues, until the job is over. Returns 0 if it completed.

    Args:
      tunnel: a port here that meanwhile is a port of the job's first node.
    """
    with ExitStack() as stack:
        return _follow(shell, job, log, pause_s, tunnel, stack)


def _follow(shell: Shell, job: str, log: Path, pause_s: float, tunnel: tuple[int, int] | None, stack: ExitStack) -> int:
    seen, offset, unknown = "", 0, 0
    while True:
        state = _state(shell, job)
        unknown = 0 if state else unknown + 1
        if unknown == 10:
            raise LaunchError(f"neither squeue nor sacct knows job {job} any more; its log: {log}")
        if state != seen:
            say(f"job {job}: {state or 'not known yet'}")
            seen = state
            stack.close()  # a job that was queued again may run elsewhere
            if state == "RUNNING" and tunnel:
                stack.enter_context(_tunnelled(shell, job, tunnel))
        if log.is_file():
            with log.open("rb") as file:
                file.seek(offset)
                sys.stdout.buffer.write(file.read())
                sys.stdout.buffer.flush()
                offset = file.tell()
        if state not in WAITING:
            return 0 if state == "COMPLETED" else 1
        shell.sleep(pause_s)


def _tunnelled(shell: Shell, job: str, tunnel: tuple[int, int]) -> AbstractContextManager[None]:
    """A port here is one of the job's first node, where the server listens."""
    node = shell.ask(["squeue", "--noheader", f"--jobs={job}", "--format=%B"], pretend="NODE").stdout.strip()
    here = "127.0.0.1:{}:127.0.0.1:{}".format(*tunnel)
    say(
        f"while this command runs, http://127.0.0.1:{tunnel[0]}/v1 here is the server's, once its log says ready; clients show LPO_API_KEY. "
        f"From your own machine: ssh -N -L {tunnel[0]}:127.0.0.1:{tunnel[0]} {socket.gethostname()}"
    )
    return shell.beside(["ssh", "-N", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes", "-L", here, node])


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
    parser = arguments.tunnelled(arguments.parser("slurm", __doc__, EXAMPLES, "of the job"))
    parser.add_argument("--nodes", type=whole(1), default=1, help="(default: 1)")
    parser.add_argument("--gpus", type=whole(0), default=0, help="GPUs a node, each with a process of its own (default: 0, CPUs)")
    parser.add_argument("--restarts", type=whole(0), default=20, help="times that it is queued again after it has saved (default: 20)")
    parser.add_argument("--detach", action="store_true", help="submit it, and don't follow")
    parser.add_argument("--pause-s", type=number(), default=10, help="seconds between looks at the queue (default: 10)")
    return arguments.run(parser, "slurm", up)


if __name__ == "__main__":
    sys.exit(main())
