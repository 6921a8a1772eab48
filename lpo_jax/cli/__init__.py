"""`lpo`: each command is a file of this folder. Its docstring is the help, `add` adds the arguments, and `run` runs it.

A docstring says "`lpo NAME`: what it does in a few words.", then all of it, and last, behind the arguments, examples.
"""

import logging

from foundation.commands import Program
from lpo_jax import devices
from lpo_jax.cli import config, doctor, export, fetch, generate, plan, report, serve, teacher, train


def program() -> Program:
    """`lpo` with its commands."""
    program = Program("lpo", "Teach a code model to write secure code, and use it. `lpo COMMAND --help` has examples.")
    for command in (train, config, report, teacher, plan, generate, serve, export, fetch, doctor):
        first, _, about = str(command.__doc__).partition("\n\n")
        name, short = command.__name__.rpartition(".")[2], first.partition(": ")[2].rstrip(".")
        command.add(program.command(name, short, about, command.run))
    return program


def main(argv: list[str] | None = None) -> int:
    devices.leave_absent_tpus_alone()
    logging.basicConfig(format="%(message)s")  # of libraries what they warn of
    for ours in ("data_pipeline", "foundation", "judges", "lpo_jax"):
        logging.getLogger(ours).setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax: what it logs it also raises
    return program().run(argv)
