"""Run a command in several processes that find one another on loopback, each with a few fake CPU devices: the same program that a pod's hosts run.
Process 0 speaks here, the others into files. SIGTERM and Ctrl-C go to all of them; when one fails, the others are ended.

What each process is told, and any launcher of your own may set:
  JAX_COORDINATOR_ADDRESS=127.0.0.1:PORT   where process 0 listens
  JAX_NUM_PROCESSES, JAX_PROCESS_ID        how many there are, and which one this is
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from foundation.commands import number, whole
from launch import arguments, job, preflight
from launch.common import PREEMPTED, Checks, Shell, say

EXAMPLES = """\
examples:
  make train-local-multihost
  make train-local-multihost CONFIG=configs/lpo_hf.yaml ARGS="model.path=DIR data.path=data/disco mesh.fsdp=8 mesh.data=1"
"""


def environment(index: int, processes: int, devices: int, port: int) -> dict[str, str]:
    """The variables that make a process one of several."""
    return {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(index),
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip(),
    }


def up(args: argparse.Namespace) -> int:
    shell, checks = Shell(args.dry_run), Checks(args.dry_run)  # one process says what is wrong, before there are several
    if found := checks.collect(lambda: job.read(args.command, args.words)):
        preflight.check_job(shell, checks, found, args.processes * args.devices, built=args.built)
    checks.finish()
    command = [*job.COMMANDS[args.command].program, *args.words]
    if args.dry_run:
        for index in range(args.processes):
            pairs = [f"{key}={value}" for key, value in environment(index, args.processes, args.devices, 0).items()]
            shell.run(["env", *pairs, *command])
        return 0
    logs = Path("runs/local")
    logs.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]  # free a moment later
    with ExitStack() as stack:
        running: list[subprocess.Popen[bytes]] = []
        stopping = False

        def pass_on(*_: object) -> None:
            nonlocal stopping
            stopping = True
            for process in running:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)

        signal.signal(signal.SIGTERM, pass_on)
        signal.signal(signal.SIGINT, pass_on)
        for index in range(args.processes):
            file = stack.enter_context((logs / f"{args.name}-{index}.log").open("wb")) if index else None
            added = environment(index, args.processes, args.devices, port)
            process = subprocess.Popen(command, env=os.environ | added, stdout=file, stderr=file, start_new_session=True)
            running.append(process)
            stack.callback(_end, process)
            if stopping:  # the signal came before this process was there to be told
                process.send_signal(signal.SIGTERM)
        say(f"{args.processes} processes of {args.devices} devices; those after the first write to {logs}/{args.name}-N.log")
        codes = _wait(running, args.grace_s)
    say(f"exit codes: {', '.join(map(str, codes))}")
    # Those that had to be killed only waited for one that went wrong; 75 only says that all have saved and stopped.
    wrong = sorted((code > 128, code) for code in codes if code not in (0, PREEMPTED))
    return wrong[0][1] if wrong else max(codes)


def _wait(running: list[subprocess.Popen[bytes]], grace_s: float) -> list[int]:
    """Wait for all; one that fails leaves the others `grace_s` seconds to end. Returns exit codes, 128 + n for signal n."""
    since = None
    while None in (codes := [process.poll() for process in running]):
        if since is None and any(codes):
            since = time.monotonic()
        if since is not None and time.monotonic() - since > grace_s:
            for process in running:
                _end(process)
        time.sleep(0.1)
    return [process.returncode if process.returncode >= 0 else 128 - process.returncode for process in running]


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()


def main() -> int:
    parser = arguments.parser("local", __doc__, EXAMPLES, "of the log files")
    parser.add_argument("--built", metavar="DIR", help="a shard set that is built before this: a dry run goes on without it")
    parser.add_argument("--processes", type=whole(1), default=2, help="(default: 2)")
    parser.add_argument("--devices", type=whole(1), default=4, help="fake CPU devices of each process (default: 4)")
    parser.add_argument(
        "--grace-s", type=number(), default=60, help="seconds that the others have to end when one has failed (default: 60)"
    )
    return arguments.run(parser, "local", up)


if __name__ == "__main__":
    sys.exit(main())
