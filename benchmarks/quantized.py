"""A quantised base against the float one: what reading it takes, its loss, and that of LoRA steps beside it.

One base a call: memory that is freed may stay the process's. Run it once without --quantize, and once with it.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks import common
from data_pipeline import pairs
from data_pipeline.build import BuildOptions, build
from data_pipeline.feed import Feed
from lpo_jax.config import AdamW, DataConfig, LoraConfig, MeshConfig, ModelSource, RunConfig, StageConfig
from lpo_jax.model import hf
from lpo_jax.objectives.sft import Sft
from lpo_jax.sharding import make_mesh
from lpo_jax.train.optimizer import optimizer
from lpo_jax.train.placement import to_devices
from lpo_jax.train.state import new_state
from lpo_jax.train.step import make_train_step, objective_terms
from lpo_jax.train.weights import load_params

ROWS = 8
"""Of the loss before any step."""

LAST = 10
"""Steps whose mean loss is told: a single batch's says less."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("benchmarks.quantized", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a directory with config.json and *.safetensors")
    parser.add_argument("--quantize", choices=("int8", "int4", "nf4"), help="default: float32")
    numbers = (
        ("steps", 50, "LoRA steps; 0: the base's own loss says nearly everything, and takes a fraction of the time"),
        ("row-tokens", 256, "tokens in a row"),
        ("batch-rows", 1, "rows in a step"),
    )
    common.add_numbers(parser, *numbers)
    args = parser.parse_args(argv)

    source = ModelSource(path=args.model, lora=LoraConfig(rank=16, alpha=32.0), quantize=args.quantize)
    stage = StageConfig(Sft(), AdamW(lr=2e-4), batch_rows=args.batch_rows, steps=max(args.steps, 1))
    config = RunConfig("", DataConfig(""), source, {"sft": stage})
    model, mesh = hf.open_model(source), make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as directory:
        shards = Path(directory) / "shards"
        jnp.zeros(()).block_until_ready()
        before = peak_bytes()
        params, frozen = jax.block_until_ready(load_params(config, model, mesh))
        result = {
            "base": args.quantize or "float32",
            "float_model_bytes": sum(4 * x.size for x in jax.tree.leaves(model.shapes())),
            "read_peak_bytes": peak_bytes() - before,
            "device_bytes": sum(x.on_device_size_in_bytes() for x in jax.tree.leaves(frozen)),
        }
        build([shortened(Path(directory))], shards, args.model, BuildOptions(row_tokens=args.row_tokens, heldout=0))
        before_any = jax.jit(lambda *given: objective_terms(model, stage.objective, *given)["loss"])
        total, count = before_any(params, frozen, to_devices(next(iter(Feed(shards).batches(ROWS, 0, 1))), mesh, ROWS))
        result["base_loss"] = float(total / count)
        losses, seconds = [], []
        if args.steps:
            tx = optimizer(stage.optim, args.steps, model)
            step, now = make_train_step(model, stage.objective, tx, mesh), new_state(params, tx)
            for batch in Feed(shards).batches(args.batch_rows, 0, args.steps):
                start = time.perf_counter()
                now, terms = step(now, frozen, to_devices(batch, mesh, args.batch_rows, 1))
                losses.append(float(terms["loss"][0] / terms["loss"][1]))
                seconds.append(time.perf_counter() - start)
            result |= {
                "first_loss": losses[0],
                "last_loss": statistics.mean(losses[-LAST:]),
                "step_s": statistics.median(seconds),
                "losses": losses,
            }
    for name, value in result.items():
        if name.endswith("bytes"):
            print(f"{name:18} {value / 2**20:9.1f} MiB")
        elif name != "losses":
            print(f"{name:18} {value:>9}" if isinstance(value, str) else f"{name:18} {value:9.4f}")
    common.write_json(args.json, result)
    return 0


def shortened(directory: Path) -> Path:
    """The shipped pairs with five words of each instruction, so that most fit into short rows."""
    rows = [
        replace(pair, instruction=" ".join(pair.instruction.split()[:5]), reasoning="")
        for pair in pairs.read(common.SEED_PAIRS, pairs.Drops())
    ]
    pairs.write(rows, directory / "pairs.jsonl")
    return directory / "pairs.jsonl"


def peak_bytes() -> int:
    """The most memory that this process has had so far; on CPUs the devices' is part of it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
