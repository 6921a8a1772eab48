"""`lpo`: train a model, plan it, sample from it, serve it and export it. Each command is a file of this folder."""

import argparse
import logging

from foundation.errors import run_command
from lpo_jax.cli import config, export, generate, plan, serve, teacher, train


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "lpo", description="Teach a code model to write secure code, and use it. `lpo COMMAND --help` has examples."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (train, config, teacher, plan, generate, serve, export):
        command.add(commands)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax: what it logs it also raises
    return run_command("lpo", lambda: args.run(args))
