"""`lpo plan`: does a config fit a TPU slice?

Compile the step that `lpo train CONFIG` would run, for a TPU slice, on this machine, which needs no TPU: minutes on a CPU. Says whether
it fits, what fills each device's memory, what a step computes and moves, and how fast it can be at most. Needs libtpu:
pip install 'lpo-jax[tpu]'.

The model's weights aren't read: its shape comes from model.shape, model.new, or model.path's config.json. The rows' shape comes from the
manifests of the stage's data, or where there is none yet from the keys under `plan`. What a run would refuse of rows, mesh and data is refused here
too, and an evaluation or checkpoint interval that a stage is too short for is noted.

Exit code: 0 if it fits (of several configs: if all do), 1 if it doesn't, 2 if a config is wrong.

examples:
  lpo plan configs/pods/codellama_34b_v5p_2x2x4.yaml
  lpo plan configs/pods/codellama_34b_v5p_2x2x4.yaml mesh.topology=v5p:2x2x2 mesh.fsdp=8 stages.lpo.batch_rows=8 --json plan.json
  lpo plan configs/codellama_7b.yaml mesh.topology=v5e:2x4 --search
  lpo plan configs/pods/*.yaml --table docs/plans.md
"""

import argparse
import os
from functools import partial
from pathlib import Path

from foundation.commands import new_directory, new_file, whole
from foundation.files import write_json, write_text


def add(parser: argparse.ArgumentParser) -> None:
    what = "YAML files; settings that replace the files', e.g. mesh.topology=v5p:4x4x4"
    parser.add_argument("configs", nargs="+", metavar="CONFIG | KEY=VALUE", help=what)
    parser.add_argument("--stage", metavar="NAME", help="the stage to plan; default: the last")
    parser.add_argument("--search", action="store_true", help="try meshes, remat policies and batches, and print the fastest that fits")
    parser.add_argument(
        "--tries", type=whole(1), default=12, metavar="N", help="with --search: compile so many at most (default: %(default)s)"
    )
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write everything that was found; of several configs: a list")
    parser.add_argument("--table", type=new_file, metavar="FILE", help="write a page with a row for each config, in Markdown")
    made_before = "plans made before (default: lpo-jax in $XDG_CACHE_HOME or ~/.cache); made anew when code or versions change"
    parser.add_argument("--cache", type=new_directory, metavar="DIR", help=made_before)


def run(args: argparse.Namespace) -> int:
    os.environ["JAX_PLATFORMS"] = "cpu"  # to compile for a TPU, not to hold one
    from lpo_jax.config import ConfigError, load
    from lpo_jax.plan import planner, search, text
    from lpo_jax.plan.result import Plan
    from lpo_jax.plan.rows import PlannedRows
    from lpo_jax.sharding import topology_size
    from lpo_jax.train import preflight

    overrides = [arg for arg in args.configs if "=" in arg]
    files = [Path(arg) for arg in args.configs if "=" not in arg]
    if not files:
        raise ConfigError("give a config to plan, e.g. configs/pods/codellama_7b_v5e_4x4.yaml")
    cache = Path(args.cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lpo-jax")
    plans: list[tuple[Path, Plan]] = []
    for file in files:
        config = load(file, overrides)
        stage = args.stage or list(config.stages)[-1]
        if stage not in config.stages:
            raise ConfigError(f"--stage {stage}: the stages of {file} are {', '.join(config.stages)}")
        find = partial(search.search, tries=args.tries) if args.search else planner.cached
        found = find(config, stage, PlannedRows.of(config, stage), cache)
        if found is not None:
            plans.append((file, found))
            print(text.describe(found), end="\n\n")
        told = preflight.look(config, topology_size(str(config.mesh.topology)))
        if not args.search:  # which changes mesh and batches
            told.raise_first()
        for warning in told.warnings:
            print(f"note: {warning}\n")
    if args.json and plans:
        facts = [found.facts() for _, found in plans]
        write_json(args.json, facts if len(files) > 1 else facts[0])
    if args.table and plans:
        write_text(args.table, text.page(plans))
    return 0 if len(plans) == len(files) and all(found.fits for _, found in plans) else 1
