"""`lpo`: each command is a file of this folder."""

import logging

from foundation.commands import Program
from lpo_jax.cli import config, export, generate, plan, serve, teacher, train


def main(argv: list[str] | None = None) -> int:
    program = Program("lpo", "Teach a code model to write secure code, and use it. `lpo COMMAND --help` has examples.")
    for command in (train, config, teacher, plan, generate, serve, export):
        command.add(program)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax: what it logs it also raises
    return program.run(argv)
