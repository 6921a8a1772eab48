"""What every launcher takes: options of its own, then a command with its arguments."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from foundation.commands import Parser, number, whole
from foundation.errors import UserError, run_command
from launch import job
from launch.common import REPO, say
from launch.job import COMMANDS
from launch.preflight import PLANNED


class _Parser(Parser):
    def error(self, message: str) -> NoReturn:
        """A wrong option is also called as `make` calls it."""
        super().error(re.sub(r"^argument (--[\w-]+)", lambda found: called(found[1]), message))


def called(option: str) -> str:
    """An option, and the setting of the Makefile that becomes it, if there is one."""
    settings = dict(re.findall(r"\$\(call (?:with|on),(\w+),(--[\w-]+)", (REPO / "Makefile").read_text(encoding="utf-8")))
    return option + "".join(f" (make: {setting}=...)" for setting, made in settings.items() if made == option)


def parser(module: str, description: str | None, examples: str, named: str) -> argparse.ArgumentParser:
    """A command with its arguments, and a name; `named` says of what."""
    raw = argparse.RawDescriptionHelpFormatter
    made = _Parser(f"python -m launch.{module}", description=description, epilog=examples, formatter_class=raw)
    said = "; ".join(f"{name}: {command.what}" for name, command in COMMANDS.items())
    made.add_argument("command", nargs="?", choices=COMMANDS, metavar="COMMAND", help=said)
    made.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help="its arguments, as `lpo COMMAND --help` explains them (eval: `lpo-eval run --help`); a config with its settings, e.g. configs/lpo_hf.yaml run_dir=runs/mine, must be one that git tracks to be sent anywhere")  # fmt: skip
    made.add_argument("--name", help=f"{named} (default: lpo, your user name and what it writes: the run_dir, or -o)")
    made.add_argument("--dry-run", action="store_true", help="check it, show every command, run none")
    return made


def cloud_parser(module: str, description: str | None, examples: str) -> argparse.ArgumentParser:
    """What every launcher for the cloud takes; `--down --name` needs no command."""
    made = parser(module, description, examples, "of what is created")
    made.add_argument("--tpu", metavar="SLICE", help="v5e:4x4, v6e:4x8, v5p:2x2x4, ... or v5litepod-16, v6e-32, v5p-32, ... (default, of a config: mesh.topology)")  # fmt: skip
    made.add_argument("--spot", action="store_true", help="cheap machines that may be taken away (TPU VMs: from the queue)")
    made.add_argument("--skip-plan", action="store_true", help="don't ask `lpo plan` first")
    return made


def followed(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """What launchers take that stay until the end, or come back."""
    made.add_argument("--delete", choices=("never", "success", "always"), default="never", help="delete what was created at the end: after a job that succeeded, or also after one that failed (default: never); Ctrl-C never does")  # fmt: skip
    made.add_argument("--restarts", type=whole(0), default=20, help="restarts after preemption (default: 20)")
    made.add_argument("--pause-s", type=number(), default=30, help="seconds between looks at the cloud, before a first retry (default: 30)")
    made.add_argument("--down", action="store_true", help="delete what an earlier job created, and do nothing else")
    return tunnelled(made)


def tunnelled(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    made.add_argument("--port", type=whole(1, 65535), metavar="N", help="serve: the port on this machine (default: the server's own, 8000)")
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments of such a parser, with a name for the job; this checkout becomes the working directory.

    Raises:
      UserError: they are wrong.
    """
    args = made.parse_args()
    down = getattr(args, "down", False)
    if args.command not in (None, "serve") and getattr(args, "port", None):
        made.error(f"{called('--port')}: only a server has a tunnel, not {args.command}; leave it out")
    if args.command not in (None, *PLANNED) and getattr(args, "skip_plan", False):
        made.error(f"{called('--skip-plan')}: {' and '.join(PLANNED)} are planned, not {args.command}; leave it out")
    if args.command is None and not (down and args.name):
        made.error(f"which command? One of {', '.join(COMMANDS)}" + " (or --down --name NAME)" * hasattr(args, "down"))
    # A program beside this Python, as in a virtual environment that isn't activated, is found after those on the PATH.
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    os.chdir(REPO)
    if args.dry_run:
        say("a dry run: what stands behind + is shown, and not run; what is said of it is what would be said if all went well")
    if not args.name:
        try:
            asked = job.read(args.command, args.words)
            args.name = asked.name
            say(f"this job is called {args.name}, after {asked.place} ({called('--name')} calls it otherwise)")
        except UserError:
            if down:
                raise
            args.name = "lpo"  # what is wrong is said with all else
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", args.name):
        made.error(f"{called('--name')}: {args.name!r} can't name a job: small letters, digits and dashes, at most 40")
    return args


def run(made: argparse.ArgumentParser, where: str, act: Callable[[argparse.Namespace], int]) -> int:
    """The exit code of what the arguments ask for; what a user can mend is told on stderr."""

    def parse_and_act() -> int:
        args = parse(made)
        return run_command(f"{args.command or 'train'}-{where}", lambda: act(args))

    return run_command(made.prog, parse_and_act)
