"""`lpo export`: a run as a Hugging Face directory.

Write what a run has trained, from its newest (or best) checkpoint, as transformers, PEFT and vLLM load it: config.json and safetensors (a LoRA run:
the adapter), the tokenizer's files, generation_config.json, how it was asked in training (prompt_template.json), and a model card with the run's
settings, data and held-out numbers. Only what was trained is read. A run that fits no single host is exported by all of its slice: start the same
command on each host; the first writes.
"""

import argparse
from functools import partial

from foundation.commands import new_directory


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN", help="the run_dir of a trained config")
    parser.add_argument("out", type=new_directory, metavar="DIR", help="where to write; an earlier export there is replaced")
    parser.add_argument("--best", action="store_true", help="the checkpoint with the best held-out `best_metric`, instead of the newest")
    parser.add_argument(
        "--merge",
        action="store_true",
        help="a LoRA run: fold the adapters into the weights, never the quantised ones, and write a whole model",
    )


def run(args: argparse.Namespace) -> int:
    from lpo_jax.train import distributed

    return distributed.together(partial(_export, args))


def _export(args: argparse.Namespace) -> int:
    from lpo_jax.export import export
    from lpo_jax.train.distributed import first

    loader = export(args.run_dir, args.out, args.merge, args.best)
    if first():
        print(f"wrote {args.out}; load it with {loader}")
    return 0
