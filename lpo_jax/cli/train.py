"""`lpo train`: run a config.

Run every stage of a config, e.g. sft, then lpo (or kd: distillation from a larger model; security: adapters on a frozen base), and write
into its run_dir:
  summary.json   held-out numbers before training and after each stage     report.html   the same to look at, with curves and pairs
  metrics.jsonl  one line a step       tensorboard/  the same        checkpoints/  the state; the same command goes on from the newest
(track=[tensorboard, wandb, trackio] says where else a run is followed: docs/tracking.md.)
SIGTERM or Ctrl-C saves and ends with exit code 75. On several hosts start the same command on each: see launch/README.md.

examples:
  lpo train configs/tiny_cpu.yaml
  lpo train configs/tiny_cpu.yaml run_dir=runs/hot stages.lpo.optim.lr=1e-4 stages.lpo.objective.beta=2
  lpo train configs/lpo_hf.yaml model.path=DIR data.path=data/disco mesh.fsdp=4 mesh.tensor=2
  lpo train configs/lpo_hf.yaml data.path=data/disco 'stages.sft.data=[{path: data/disco, weight: 1}, {path: data/plain, weight: 3}]'
"""

import argparse
import errno
import sys
from functools import partial
from typing import TYPE_CHECKING

from foundation.console import waiting

if TYPE_CHECKING:
    from lpo_jax.config import RunConfig


def add(parser: argparse.ArgumentParser) -> None:
    add_config(parser)


def add_config(parser: argparse.ArgumentParser, what: str = "a YAML file") -> None:
    """The arguments that name a config and change it."""
    parser.add_argument("config", metavar="CONFIG", help=f"{what}; `lpo config CONFIG` explains every key")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that replace the file's")


def run(args: argparse.Namespace) -> int:
    from lpo_jax.config import load

    config = load(args.config, args.overrides)
    with waiting("loading JAX"):
        from lpo_jax.train import distributed
    return distributed.together(partial(_train, config), args, config, saves=True)


def _train(config: "RunConfig") -> int:
    from lpo_jax.train.distributed import first
    from lpo_jax.train.loop import train
    from lpo_jax.train.stop import EXIT_CODE, CheckpointError, Preempted

    try:
        summary = train(config)
    except Preempted as stopped:
        if first():
            print(f"lpo: {stopped}; the same command goes on from there", file=sys.stderr)
        return EXIT_CODE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CheckpointError(
            f"{config.run_dir}: {error.strerror}. Its checkpoints stay: make room and run the same command again"
        ) from error
    if first():
        _print_summary(summary, config.run_dir)
    return 0


def _print_summary(summary: dict[str, dict[str, float]], run_dir: str) -> None:
    forms = {"pair_accuracy": ".1%", "margin": ".3f", "changed_nll": ".3f", "unchanged_nll": ".3f"}
    print(f"\nheld-out pairs  {'preference accuracy':>20} {'margin':>8} {'NLL, changed':>13} {'NLL, unchanged':>15}")
    print(f"{'':15} {'on changed tokens':>20} {'nats':>8} {'nats/token':>13} {'nats/token':>15}")
    for name, row in summary.items():
        shown = [format(row[column], form) if column in row else "-" for column, form in forms.items()]
        print(f"{name:15} {shown[0]:>20} {shown[1]:>8} {shown[2]:>13} {shown[3]:>15}")
    print(f"\nreport: {run_dir}/report.html   numbers: {run_dir}/summary.json")
