"""`lpo teacher`: run a kd stage's teacher once.

Run the teacher of a stage of objective kd once over the train split, and keep what it holds most probable in the place of each scored token.
A run whose kl.teacher is OUT then reads that, and needs no memory or time for the teacher. Of all other tokens one sum is kept.

The same command goes on where it was stopped. Pays where the same shards are distilled more than once, or the teacher doesn't fit beside
the student; needs 8 bytes for each of the K tokens in each place. The teacher is cut over all devices as CONFIG's mesh says. On several hosts start the same
command on each: OUT is written once on a disk that all see, else on each host's own, where `lpo train` will read it.

examples:
  lpo teacher configs/cosec_plus/qwen2_5_coder_kd.yaml mesh.fsdp=8 -o data/qwen_teacher
  lpo train configs/cosec_plus/qwen2_5_coder_kd.yaml stages.kd.objective.kl.teacher=data/qwen_teacher
"""

import argparse
from functools import partial
from typing import TYPE_CHECKING

from foundation.commands import new_directory, whole
from foundation.console import waiting
from lpo_jax.cli.train import add_config

if TYPE_CHECKING:
    from lpo_jax.config import RunConfig


def add(parser: argparse.ArgumentParser) -> None:
    add_config(parser, "a YAML file with a stage of objective kd")
    parser.add_argument("-o", "--out", type=new_directory, required=True, metavar="OUT", help="the directory to write")
    parser.add_argument("--stage", metavar="NAME", help="default: the only one of objective kd")
    parser.add_argument("--top-k", type=whole(1), default=64, metavar="K", help="tokens to keep (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    from lpo_jax.config import load

    config = load(args.config, args.overrides)
    with waiting("loading JAX"):
        from lpo_jax.train import distributed
    return distributed.together(partial(_compute, args, config), args, config)


def stage_of(args: argparse.Namespace, config: "RunConfig") -> str:
    """The stage whose teacher is meant.

    Raises:
      ConfigError: it isn't clear which, or there is none.
    """
    from lpo_jax.config import ConfigError
    from lpo_jax.train import teacher

    taught = [name for name in config.stages if teacher.taught(config, name)]
    if not taught:
        raise ConfigError(f"{args.config}: no stage has the objective kd, so there is nothing that a teacher would be asked")
    if args.stage is None and len(taught) > 1:
        raise ConfigError(f"{args.config}: several stages have the objective kd: name one with --stage: {', '.join(taught)}")
    if args.stage not in (None, *taught):
        raise ConfigError(f"--stage {args.stage}: of {args.config} it can be {', '.join(taught)}")
    return args.stage or taught[0]


def _compute(args: argparse.Namespace, config: "RunConfig") -> int:
    from lpo_jax.train import teacher
    from lpo_jax.train.data import open_data
    from lpo_jax.train.distributed import first

    stage = stage_of(args, config)
    _, feeds, _ = open_data(config)
    teacher.write(config, stage, feeds[stage], args.out, args.top_k)
    if first():
        print(f"wrote {args.out}; train with stages.{stage}.objective.kl.teacher={args.out}")
    return 0
