"""`lpo plan`: does a config fit a TPU slice, and what does the run take?

Compile the steps that `lpo train CONFIG` would run, of every stage, for a TPU slice, on this machine, which needs no TPU: minutes on a CPU.
Says whether they fit, what fills each device's memory, what a step computes and moves, and how fast it can be at most; then of the run:
  steps, tokens  from the manifests of the stages' shards; where there are none yet from plan.pairs (`lpo config CONFIG` explains `plan`)
  hours          from the steps' bounds to 40 % of that speed. Public runs reach 45 to 72 % of a TPU's peak; this program has met none yet.
                 Compiling, evaluations, a reference's pass and checkpoints aren't counted
  dollars        by a dated table of list prices (lpo_jax/plan/prices.yaml), or yours
  checkpoints    how large, and whether one is written within the 30 s that a spot machine has before it goes
Where a stage doesn't fit, the nearest change that does is looked for: policy, microbatches, mesh, batch; else adapters, and a larger slice.

What a run would refuse of rows, mesh and data is refused here too, and an evaluation or checkpoint interval that a stage is too short for is noted.

With --serve it plans decoding instead, as `lpo serve` and `lpo generate` do it, of one model or of two that co-decode: the programs that read prompts
and extend rows are compiled for the slice. Says whether weights, pages and rows fit, how many rows more would, and how many tokens a second it can
be at most. A model is given as a copy of its config.json (configs/shapes/), a run's config, a run_dir, a Hugging Face directory or a hub id.

Needs libtpu: pip install 'lpo-jax[tpu]'. The model's weights aren't read: its shape comes from model.shape, model.new, or model.path's
config.json.

Exit code: 0 if every stage fits (of several configs: if all do), or what serves does; 1 if one doesn't, 2 if a config is wrong.

examples:
  lpo plan configs/pods/codellama_34b_v5p_2x2x4.yaml plan.pairs=10000
  lpo plan configs/pods/codellama_34b_v5p_2x2x4.yaml mesh.topology=v5p:2x2x2 mesh.fsdp=8 stages.lpo.batch_rows=8 --json plan.json
  lpo plan configs/codellama_7b.yaml mesh.topology=v5e:2x4 --search
  lpo plan configs/pods/*.yaml --stage lpo --tries 0 --table docs/plans.md
  lpo plan --serve v5e:4x4 --model configs/shapes/codellama_34b.json --security configs/shapes/tinyllama_1_1b.json --tensor 8
"""

import argparse
import os
from pathlib import Path

from foundation.commands import new_directory, new_file, number, whole
from foundation.files import Json, cache_directory, write_json, write_text
from lpo_jax.cli.models import add_room


def add(parser: argparse.ArgumentParser) -> None:
    what = "YAML files; settings that replace the files', e.g. mesh.topology=v5p:4x4x4"
    parser.add_argument("configs", nargs="*", default=[], metavar="CONFIG | KEY=VALUE", help=what)
    parser.add_argument("--stage", metavar="NAME", help="plan this stage alone; default: all")
    parser.add_argument(
        "--search", action="store_true", help="try meshes, policies and batches for the stage (default: the last), and plan the fastest"
    )
    tries = "compile so many others at most, with --search and where a stage doesn't fit (default: %(default)s)"
    parser.add_argument("--tries", type=whole(0), default=12, metavar="N", help=tries)
    parser.add_argument("--prices", type=Path, metavar="FILE", help="a table of prices like lpo_jax/plan/prices.yaml, in its place")
    rate = "what a host writes to a bucket in a second (default: 1, an assumption)"
    parser.add_argument("--write-rate", type=number(above=True), metavar="GB", help=rate)
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write everything that was found; of several configs: a list")
    parser.add_argument("--table", type=new_file, metavar="FILE", help="write a page with a row for each config, in Markdown")
    made_before = "plans made before (default: lpo-jax in $XDG_CACHE_HOME or ~/.cache); made anew when code or versions change"
    parser.add_argument("--cache", type=new_directory, metavar="DIR", help=made_before)
    training = {action.dest: action.default for action in parser._actions if action.dest not in ("help", "json")}
    serving = parser.add_argument_group("decoding")
    serving.add_argument("--serve", metavar="SLICE", help="plan decoding on this TPU slice, e.g. v5e:4x4")
    serving.add_argument("--model", help="what decodes")
    serving.add_argument("--security", metavar="MODEL", help="a second model, of the same tokenizer, that proposes the tokens")
    add_room(serving)
    decoding = {action.dest: action.default for action in serving._group_actions if action.dest != "serve"}
    parser.set_defaults(of_training=training, of_decoding=decoding)


def run(args: argparse.Namespace) -> int:
    os.environ["JAX_PLATFORMS"] = "cpu"  # to compile for a TPU, not to hold one
    from lpo_jax.config import ConfigError

    others = args.of_training if args.serve else args.of_decoding
    if given := [name for name, default in others.items() if getattr(args, name) != default]:
        flags = ", ".join("CONFIG" if name == "configs" else f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"{flags}: not with --serve, which plans decoding" if args.serve else f"{flags}: for --serve SLICE alone")
    return _plan_serving(args) if args.serve else _plan_training(args)


def _plan_serving(args: argparse.Namespace) -> int:
    from lpo_jax.cli.serve import SERVED_LEN_TOKENS
    from lpo_jax.config import ConfigError, MeshConfig
    from lpo_jax.decode.load import Models
    from lpo_jax.serve import plan

    if args.model is None:
        raise ConfigError("--serve plans what decodes: give it with --model, e.g. --model configs/shapes/codellama_34b.json")
    if args.quantize:
        raise ConfigError("--quantize: plans are of float weights; leave it out")
    if args.block and not args.security:
        raise ConfigError("--block is for co-decoding: give --security as well")
    room = {name: getattr(args, name) for name in ("block", "rows", "max_len_tokens", "cache_gib", "dtype")}
    mesh = MeshConfig(args.data, args.fsdp, args.tensor, args.expert)
    found = plan.make(Models(args.model, security=args.security, mesh=mesh, **room), args.serve, SERVED_LEN_TOKENS)
    print(plan.describe(found))
    if args.json:
        write_json(args.json, found.facts())
    return 0 if found.fits else 1


def _plan_training(args: argparse.Namespace) -> int:
    from lpo_jax.config import ConfigError, load
    from lpo_jax.plan import planner, prices, search, text
    from lpo_jax.plan.rows import PlannedRows
    from lpo_jax.plan.run import WRITE_RATE, Run
    from lpo_jax.sharding import topology_size
    from lpo_jax.train import preflight

    overrides = [arg for arg in args.configs if "=" in arg]
    files = [Path(arg) for arg in args.configs if "=" not in arg]
    if not files:
        raise ConfigError("give a config to plan, e.g. configs/pods/codellama_7b_v5e_4x4.yaml")
    cache = Path(args.cache or cache_directory())
    table = prices.Prices.load(args.prices or prices.SHIPPED)
    runs: list[tuple[Path, Run]] = []
    facts: list[Json] = []
    for file in files:
        config = load(file, overrides)
        if args.stage is not None and args.stage not in config.stages:
            raise ConfigError(f"--stage {args.stage}: the stages of {file} are {', '.join(config.stages)}")
        stages = [args.stage] if args.stage else list(config.stages)
        if args.search:
            found = search.search(config, stages[-1], cache, args.tries)
            if found is None:
                continue
            config = found
        plans = []
        for stage in stages:
            plans.append(planner.cached(config, stage, PlannedRows.of(config, stage), cache))
            print(text.describe(plans[-1]), end="\n\n")
        told = preflight.look(config, topology_size(str(config.mesh.topology)))
        told.raise_first()
        for warning in told.warnings:
            print(f"note: {warning}\n")
        planned = Run.of(config, plans, table, args.write_rate or WRITE_RATE)
        runs.append((file, planned))
        print(text.describe_run(planned))
        facts.append(planned.facts() | {"nearest": []})
        if planned.worst.too_large and args.tries:
            others = [plan.stage for plan in plans if plan is not planned.worst]
            for near in search.nearest(config, planned.worst, others, cache, args.tries):
                print(text.describe_near(near))
                facts[-1]["nearest"].append({"settings": near.settings, "stages": {plan.stage: plan.facts() for plan in near.plans}})
            if not facts[-1]["nearest"]:
                print(f"nothing near it fits, of {args.tries} tries each (--tries)")
        print()
    if args.json and facts:
        write_json(args.json, facts if len(files) > 1 else facts[0])
    if args.table and runs:
        write_text(args.table, text.page([(file, planned.worst) for file, planned in runs]))
    return 0 if len(runs) == len(files) and all(planned.worst.fits for _, planned in runs) else 1
