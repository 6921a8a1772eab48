"""`lpo`: train a model, sample from it and export it. The composition root: here and in `cli_decode` the learner meets the data pipeline."""

import argparse
import errno
import json
import logging
import os
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from lpo_jax import cli_decode
from lpo_jax.config import ConfigError, RunConfig, load

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from data_pipeline.feed import Feed
    from lpo_jax.plan import RowShape

TRAIN_HELP = """\
Run every stage of a config, e.g. sft, then lpo (or kd: distillation from a larger model; security: adapters on a frozen base), and write
into its run_dir:
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
TEACHER_HELP = """\
Run the teacher of a stage of objective kd once over the train split, and keep what it holds most probable in the place of each scored token.
A run whose kl.teacher is OUT then reads that, and needs no memory or time for the teacher. Of all other tokens one sum is kept.

The same command goes on where it was stopped. Pays where the same shards are distilled more than once, or the teacher doesn't fit beside
the student; needs 8 bytes for each of the K tokens in each place. One host; the teacher is cut over its devices as CONFIG's mesh says.
"""
TEACHER_EXAMPLES = """\
examples:
  lpo teacher configs/cosec_plus/qwen2_5_coder_kd.yaml -o data/qwen_teacher mesh.fsdp=8
  lpo train configs/cosec_plus/qwen2_5_coder_kd.yaml stages.kd.objective.kl.teacher=data/qwen_teacher
"""
PLAN_HELP = """\
Compile the step that `lpo train CONFIG` would run, for a TPU slice, on this machine, which needs no TPU: minutes on a CPU. Says whether
it fits, what fills each device's memory, what a step computes and moves, and how fast it can be at most. Needs libtpu:
pip install 'lpo-jax[tpu]'.

The model's weights aren't read: its shape comes from model.shape, model.new, or model.path's config.json. The rows' shape comes from the
manifest in data.path, or where there is none yet from the keys under `plan`.

Exit code: 0 if it fits (of several configs: if all do), 1 if it doesn't, 2 if a config is wrong.
"""
PLAN_EXAMPLES = """\
examples:
  lpo plan configs/pods/codellama_34b_v5p_2x2x4.yaml
  lpo plan configs/pods/codellama_34b_v5p_2x2x4.yaml mesh.topology=v5p:2x2x2 mesh.fsdp=8 stages.lpo.batch_rows=8 --json plan.json
  lpo plan configs/codellama_7b.yaml mesh.topology=v5e:2x4 --search
  lpo plan configs/pods/*.yaml --table docs/plans.md
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
    teacher = commands.add_parser(
        "teacher", help="run a kd stage's teacher once", description=TEACHER_HELP, epilog=TEACHER_EXAMPLES, formatter_class=raw
    )
    teacher.add_argument("config", metavar="CONFIG", help="a YAML file with a stage of objective kd")
    teacher.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that replace the file's")
    teacher.add_argument("-o", "--out", required=True, metavar="OUT", help="the directory to write")
    teacher.add_argument("--stage", metavar="NAME", help="default: the only one of objective kd")
    teacher.add_argument("--top-k", type=int, default=64, metavar="K", help="tokens to keep (default: %(default)s)")
    teacher.set_defaults(run=_teacher)
    plan = commands.add_parser(
        "plan", help="does a config fit a TPU slice?", description=PLAN_HELP, epilog=PLAN_EXAMPLES, formatter_class=raw
    )
    plan.add_argument(
        "configs",
        nargs="+",
        metavar="CONFIG | KEY=VALUE",
        help="YAML files; settings that replace the files', e.g. mesh.topology=v5p:4x4x4",
    )
    plan.add_argument("--stage", metavar="NAME", help="the stage to plan; default: the last")
    plan.add_argument("--search", action="store_true", help="try meshes, remat policies and batches, and print the fastest that fits")
    plan.add_argument("--tries", type=int, default=12, metavar="N", help="with --search: compile so many at most (default: %(default)s)")
    plan.add_argument("--json", metavar="FILE", help="write everything that was found; of several configs: a list")
    plan.add_argument("--table", metavar="FILE", help="write a page with a row for each config, in Markdown")
    plan.add_argument(
        "--cache",
        metavar="DIR",
        help="plans made before (default: lpo-jax in $XDG_CACHE_HOME or ~/.cache); made anew when code or versions change",
    )
    plan.set_defaults(run=_plan)
    cli_decode.add_commands(commands)
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


def _teacher(args: argparse.Namespace) -> int:
    config = load(args.config, args.overrides)
    taught = [name for name, stage in config.stages.items() if stage.objective.name == "kd" and args.stage in (None, name)]
    if len(taught) != 1:
        raise ConfigError(f"{args.config}: name with --stage one of objective kd among {', '.join(config.stages)}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from data_pipeline.feed import Feed
    from lpo_jax import teacher

    data = Feed(config.data.path)
    _check_tokenizer(config, data)
    teacher.write(config, taught[0], data, args.out, args.top_k)
    print(f"wrote {args.out}; train with stages.{taught[0]}.objective.kl.teacher={args.out}")
    return 0


def _plan(args: argparse.Namespace) -> int:
    os.environ["JAX_PLATFORMS"] = "cpu"  # to compile for a TPU, not to hold one
    from lpo_jax import plan, plan_text, search

    overrides = [arg for arg in args.configs if "=" in arg]
    files = [Path(arg) for arg in args.configs if "=" not in arg]
    if not files:
        raise ConfigError("give a config to plan, e.g. configs/pods/codellama_7b_v5e_4x4.yaml")
    cache = Path(args.cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lpo-jax")
    plans: list[tuple[Path, plan.Plan]] = []
    for file in files:
        config = load(file, overrides)
        stage = args.stage or list(config.stages)[-1]
        if stage not in config.stages:
            raise ConfigError(f"--stage {stage}: the stages of {file} are {', '.join(config.stages)}")
        find = partial(search.search, tries=args.tries) if args.search else plan.cached
        found = find(config, stage, _row_shape(config), cache)
        if found is not None:
            plans.append((file, found))
            print(plan_text.describe(found), end="\n\n")
    if args.json:
        facts = [found.facts() for _, found in plans]
        Path(args.json).write_text(json.dumps(facts if len(files) > 1 else facts[0], indent=2) + "\n")
    if args.table and plans:
        Path(args.table).write_text(plan_text.page(plans))
    return 0 if len(plans) == len(files) and all(found.fits for _, found in plans) else 1


def _row_shape(config: RunConfig) -> "RowShape":
    """The shape of the shards' rows, or what the config assumes of shards that aren't built yet."""
    from data_pipeline.shards import Manifest
    from lpo_jax.plan import RowShape

    if not (Path(config.data.path) / "manifest.json").is_file():
        return RowShape.assumed(config.plan)
    manifest = Manifest.load(config.data.path)
    train = manifest.splits["train"]
    return RowShape(manifest.row_tokens, manifest.row_scored, manifest.row_pairs, train["pairs"] / train["rows"])


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
    for stage, settings in config.stages.items():
        if settings.objective.name == "kd" and settings.objective.kl is not None:
            _check_teachers_tokenizer(f"stages.{stage}.objective.kl.teacher", str(settings.objective.kl.teacher), tok.backend)
    return lru_cache(lambda token: tok.backend.decode([token], skip_special_tokens=False))


def _check_teachers_tokenizer(key: str, path: str, ours: "Tokenizer") -> None:
    """Refuse a teacher whose ids mean other tokens. It may know more of them."""
    from data_pipeline import tokenizer
    from data_pipeline.pairs import DataError
    from lpo_jax.teacher import facts

    if facts(path) is not None:  # computed before, and checked then
        return
    try:
        theirs = tokenizer.load(path).backend
    except DataError as error:
        logging.warning("%s can't be compared with the shards' tokenizer: %s", key, error)
        return
    for token, index in ours.get_vocab().items():
        if theirs.token_to_id(token) != index:
            raise ConfigError(
                f"{key}: the tokenizer of {path} has {theirs.id_to_token(index)!r} where the shards' has {token!r} (id {index}): "
                "a teacher shares the student's tokenizer, or one that begins with it"
            )


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
