"""`lpo config`: a config as a whole, with explanations."""

import argparse

from foundation.commands import Program
from lpo_jax.cli.train import add_config

HELP = """\
Print the whole config that CONFIG and the settings behind it make, defaults included. Beside each key stands what it means, [what it can be],
and (its default) where it stands at something else. What is printed is a config file of its own. Nothing is run.
"""
EXAMPLES = """\
examples:
  lpo config configs/tiny_cpu.yaml
  lpo config configs/codellama_7b.yaml model.lora.rank=32 mesh.fsdp=8 > mine.yaml
"""


def add(program: Program) -> None:
    config = program.command("config", "explain a config", HELP, run, EXAMPLES)
    add_config(config)


def run(args: argparse.Namespace) -> int:
    from lpo_jax.config import explain, load

    print(explain(load(args.config, args.overrides)), end="")
    return 0
