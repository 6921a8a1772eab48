"""`lpo config`: explain a config.

Print the whole config that CONFIG and the settings behind it make, defaults included. Beside each key stands what it means, [what it can be],
and (its default) where it stands at something else. What is printed is a config file of its own. Nothing is run.

examples:
  lpo config configs/tiny_cpu.yaml
  lpo config configs/codellama_7b.yaml model.lora.rank=32 mesh.fsdp=8 > mine.yaml
"""

import argparse

from lpo_jax.cli.train import add_config


def add(parser: argparse.ArgumentParser) -> None:
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    from lpo_jax.config import explain, load

    print(explain(load(args.config, args.overrides)), end="")
    return 0
