"""`lpo export`: a run as a Hugging Face directory, also on the hub.

Write what a run has trained, from its newest (or best) checkpoint, as transformers, PEFT and vLLM load it: config.json and safetensors (a LoRA run:
the adapter), the tokenizer's files, generation_config.json, how it was asked in training (prompt_template.json), the manifests of its data
(data*.json), and a model card with the run's settings, data, licences and held-out numbers. Only what was trained is read. A run that fits no single
host is exported by all of its slice: start the same command on each host; the first writes.

--push uploads just these files, as one commit. The key is that of `hf auth login`, or HF_TOKEN.

examples:
  lpo export runs/disco exported/
  lpo export runs/disco exported/ --merge --dtype bfloat16
  lpo export runs/disco --push OWNER/NAME --private --base Qwen/Qwen2.5-Coder-7B --data-license cc-by-4.0
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

from foundation.commands import new_directory
from foundation.console import waiting
from foundation.errors import ConfigError


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN", help="the run_dir of a trained config")
    parser.add_argument(
        "out",
        nargs="?",
        type=new_directory,
        metavar="DIR",
        help="where to write; an earlier export there is replaced (with --push: optional)",
    )
    parser.add_argument("--best", action="store_true", help="the checkpoint with the best held-out `best_metric`, instead of the newest")
    parser.add_argument(
        "--merge",
        action="store_true",
        help="a LoRA run: fold the adapters into the weights, never the quantised ones, and write a whole model",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (default: the base's; of an adapter: float32)"
    )
    hub = parser.add_argument_group("the hub, and the card")
    hub.add_argument("--push", metavar="OWNER/NAME", help="upload it to this model repository, which is made if there is none")
    hub.add_argument("--private", action="store_true", help="a repository that only its owner sees")
    hub.add_argument("--base", metavar="OWNER/NAME", help="the base's hub id (default: model.path, if it is one)")
    hub.add_argument("--license", metavar="NAME", help="what this is licensed under (default: the base's licence, where its card says one)")
    hub.add_argument("--data-license", metavar="NAME", help="what the training data are licensed under")


def run(args: argparse.Namespace) -> int:
    check(args)
    with waiting("loading JAX"):
        from lpo_jax.train import distributed
    return distributed.together(partial(_export, args), args)


def check(args: argparse.Namespace) -> None:
    """Refuse flags that don't go together.

    Raises:
      ConfigError: naming them.
    """
    if args.out is None and args.push is None:
        raise ConfigError("say where to: a directory, or --push OWNER/NAME")
    if args.private and args.push is None:
        raise ConfigError("--private is about a repository on the hub: give --push OWNER/NAME too")
    from foundation.hub import check_id

    for name in filter(None, (args.push, args.base)):
        check_id(name)


def _export(args: argparse.Namespace) -> int:
    from foundation.hub import push
    from lpo_jax.export import WRITTEN, export
    from lpo_jax.train.distributed import first

    with tempfile.TemporaryDirectory() as elsewhere:
        out = args.out or Path(elsewhere, args.push.partition("/")[2])
        card = {"base": args.base or None, "license": args.license, "data_license": args.data_license, "address": args.push}
        done = export(args.run_dir, out, args.merge, args.best, dtype=args.dtype, **card)
        if not first():
            return 0
        step = f"step {done.progress.total_step} (stage {done.progress.stage}, step {done.progress.step})"
        if args.out is not None:
            print(f"wrote {args.out}: {step} of {args.run_dir}, as {done.dtype}; load it with {done.loader}")
        if args.push is not None:
            url = push(out, args.push, "model", f"lpo export: {step}", WRITTEN, args.private)
            print(f"{url}: {step} of {args.run_dir}, as {done.dtype}")
    return 0
