"""`lpo`: train a model and export it. The composition root: the only place where the learner meets the data pipeline."""

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from lpo_jax.config import ConfigError, RunConfig, load

if TYPE_CHECKING:
    from data_pipeline.feed import Feed

TRAIN_HELP = """\
Run every stage of a config, e.g. sft, then lpo, and write into its run_dir:
  summary.json   held-out numbers before training and after each stage     report.html   the same to look at, with curves and pairs
  metrics.jsonl  one line a step       tensorboard/  the same        checkpoints/  the state; the same command goes on from the newest
SIGTERM or Ctrl-C saves and ends with exit code 75. On several hosts start the same command on each: see launch/README.md.
"""
TRAIN_EXAMPLES = """\
examples:
  lpo train configs/tiny_cpu.yaml
  lpo train configs/tiny_cpu.yaml run_dir=runs/hot stages.lpo.optim.lr=1e-4 stages.lpo.objective.beta=2
  lpo train configs/lpo_hf.yaml model.path=DIR data.path=data/disco mesh.fsdp=8 mesh.data=1
"""
EXPORT_HELP = """\
Write what a run has trained, from its newest (or best) checkpoint, as transformers, PEFT and vLLM load it: config.json and safetensors (a LoRA run:
the adapter), the tokenizer's files, generation_config.json and a model card with the run's settings, data and held-out numbers.
"""


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax: what it logs it also raises
    from data_pipeline.pairs import DataError
    from lpo_jax.train.stop import TrainingError

    try:
        return args.run(args)
    except (ConfigError, DataError, TrainingError) as error:
        print(f"lpo: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("lpo", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    raw = argparse.RawDescriptionHelpFormatter
    train = commands.add_parser("train", help="run a config", description=TRAIN_HELP, epilog=TRAIN_EXAMPLES, formatter_class=raw)
    train.add_argument("config", metavar="CONFIG", help="a YAML file; every key is explained in lpo_jax/config.py")
    train.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that replace the file's")
    train.set_defaults(run=_train)
    export = commands.add_parser("export", help="a run as a Hugging Face directory", description=EXPORT_HELP, formatter_class=raw)
    export.add_argument("run_dir", metavar="RUN", help="the run_dir of a trained config")
    export.add_argument("out", metavar="DIR", help="where to write")
    export.add_argument("--best", action="store_true", help="the checkpoint with the best held-out `best_metric`, instead of the newest")
    export.add_argument("--merge", action="store_true", help="a LoRA run: fold the adapters into the weights and write a whole model")
    export.set_defaults(run=_export)
    return parser


def _train(args: argparse.Namespace) -> int:
    config = load(args.config, args.overrides)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    from lpo_jax.train import distributed

    distributed.initialize()
    if jax.process_index() > 0:
        logging.getLogger().setLevel(logging.ERROR)  # process 0 speaks for all
    from data_pipeline.feed import Feed
    from lpo_jax.train.loop import train
    from lpo_jax.train.stop import EXIT_CODE, CheckpointError, Preempted

    with distributed.all_or_none():
        data = Feed(config.data.path, config.seed)
        decode = _check_tokenizer(config, data)
    try:
        summary = train(config, data, decode)
    except Preempted as stopped:
        if jax.process_index() == 0:
            print(f"lpo: {stopped}; the same command goes on from there", file=sys.stderr)
        return EXIT_CODE
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            error = CheckpointError(f"{config.run_dir}: {error.strerror}. Its checkpoints stay: make room and run the same command again")
        distributed.leave_if_alone(error)
        raise error
    if jax.process_index() == 0:
        _print_summary(summary, config.run_dir)
    return 0


def _export(args: argparse.Namespace) -> int:
    from lpo_jax.export import export

    print(f"wrote {args.out}; load it with {export(args.run_dir, args.out, args.merge, args.best)}")
    return 0


def _check_tokenizer(config: RunConfig, data: "Feed") -> Callable[[int], str]:
    """Refuse shards of another tokenizer than the model's; returns a decoder of single ids."""
    from data_pipeline import tokenizer

    # The model's tokenizer: data.tokenizer, else model.path's, else (a new model) the one the shards were built with.
    name = config.data.tokenizer or config.model.path or str(Path(config.data.path) / "tokenizer")
    tok = tokenizer.load(name)
    if tok.sha256 != data.manifest.tokenizer_sha256:
        raise ConfigError(
            f"{config.data.path} was built with another tokenizer than {name}: "
            f"rebuild it with `lpo-data build ... --tokenizer {name}`, or correct data.tokenizer"
        )
    return lru_cache(lambda token: tok.backend.decode([token], skip_special_tokens=False))


def _print_summary(summary: dict[str, dict[str, float]], run_dir: str) -> None:
    columns = ("pair_accuracy", "margin", "changed_nll", "unchanged_nll")
    print(f"\nheld-out pairs  {'preference accuracy':>20} {'margin':>8} {'NLL, changed':>13} {'NLL, unchanged':>15}")
    print(f"{'':15} {'on changed tokens':>20} {'nats':>8} {'nats/token':>13} {'nats/token':>15}")
    for name, row in summary.items():
        cells = [row.get(c) for c in columns]
        shown = [("-" if v is None else f"{v:.1%}" if c == "pair_accuracy" else f"{v:.3f}") for c, v in zip(columns, cells, strict=True)]
        print(f"{name:15} {shown[0]:>20} {shown[1]:>8} {shown[2]:>13} {shown[3]:>15}")
    print(f"\nreport: {run_dir}/report.html   numbers: {run_dir}/summary.json")


if __name__ == "__main__":
    sys.exit(main())
