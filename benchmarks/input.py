"""The feed against the step: how fast batches come by themselves, and how long a training step waits for one."""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax

from benchmarks import common
from data_pipeline.build import BuildOptions, build
from data_pipeline.feed import Feed
from lpo_jax.config import AdamW, MeshConfig
from lpo_jax.model.decoder import Model
from lpo_jax.objectives.lpo import Lpo
from lpo_jax.sharding import make_mesh
from lpo_jax.train.optimizer import optimizer
from lpo_jax.train.placement import to_devices
from lpo_jax.train.state import new_state
from lpo_jax.train.step import make_train_step


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("benchmarks.input", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_data_arguments(parser)
    parser.add_argument("--row-tokens", type=int, default=2048)
    parser.add_argument("--batch-rows", type=int, default=4)
    parser.add_argument("--d-model", type=int, default=128, help="width of the model: the smaller, the harder for the feed (default: 128)")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args(argv)

    with tempfile.TemporaryDirectory() as directory:
        shards = Path(directory) / "shards"
        options = BuildOptions(row_tokens=args.row_tokens, heldout=0)
        build(args.data, shards, args.tokenizer, options, vocab_size=None if args.tokenizer else 4096)
        feed = Feed(shards)
        start = time.perf_counter()
        for _ in feed.batches(args.batch_rows, 0, 10 * args.steps):
            pass
        alone = 10 * args.steps / (time.perf_counter() - start)

        vocab = -(-feed.manifest.vocab_size // 128) * 128
        model = Model(common.llama(vocab, args.d_model, args.layers, args.row_tokens))
        mesh, tx = make_mesh(MeshConfig()), optimizer(AdamW(lr=1e-5), 100, model)
        with jax.set_mesh(mesh):
            step = make_train_step(model, Lpo(beta=10.0, gamma=5.4, alpha=1.0), tx, mesh)
            now = new_state(model.init(jax.random.key(0)), tx)
            batches = feed.batches(args.batch_rows, 0, args.steps + 1)
            waits, steps = [], []
            for _ in range(args.steps + 1):
                began = time.perf_counter()
                batch = next(batches)
                got = time.perf_counter()
                now, terms = step(now, {}, to_devices(batch, mesh, args.batch_rows, 1))
                jax.block_until_ready(terms)
                waits.append(got - began)
                steps.append(time.perf_counter() - began)
    share = sum(waits[1:]) / sum(steps[1:])  # the first step compiles
    slowest = max(w / s for w, s in zip(waits[1:], steps[1:], strict=True))
    rate = 1 / statistics.median(steps[1:])
    print(f"feed alone           {alone:9.1f} batches/s of {args.batch_rows} x {args.row_tokens} tokens")
    print(f"training             {rate:9.1f} steps/s: the feed is {alone / rate:.0f} times as fast")
    print(f"waiting for a batch  {share:9.2%} of the steps' time, {slowest:.2%} in the worst step")
    result = {
        "ratios": {"feed_over_step": alone / rate},
        "wait_share": share,
        "worst_wait_share": slowest,
        "batches_per_s": alone,
        "steps_per_s": rate,
    }
    common.write_json(args.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
