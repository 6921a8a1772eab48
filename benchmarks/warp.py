"""What it takes to get tokens from logits, beside the model's own part of the step: `draw`, and the plain way, a full sort and noise for every token.

The logits are the model's, each row behind another piece of the shipped pairs' text (--model), or random ones. A step reads one token a row behind
128 others. Weights and logits are float32. What is read last is the price of each way as a share of the step's time, and the plain way's over ours.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from data_pipeline import tokenizer
from lpo_jax.config import MeshConfig
from lpo_jax.decode.load import load_model
from lpo_jax.decode.rules.warp import Site, Warp, draw
from lpo_jax.model.attention import KVPages
from lpo_jax.model.decoder import Model, Params
from lpo_jax.sharding import make_mesh

SLOTS = 128
WARPS = {
    "greedy": (0.0, 0, 1.0),
    "temperature 1": (1.0, 0, 1.0),
    "top-p 0.95": (1.0, 0, 0.95),
    "0.4, top-p 0.95": (0.4, 0, 0.95),
    "0.8, top-k 20, top-p 0.8": (0.8, 20, 0.8),
    "top-k 50": (1.0, 50, 1.0),
    "top-k 200, top-p 0.95": (1.0, 200, 0.95),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("benchmarks.warp", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory with weights and tokenizer (default: random weights, by the numbers below)")
    common.add_numbers(
        parser,
        ("rows", 32, "rows at work"),
        ("vocab", 151_936, "vocabulary of the random model"),
        ("width", 896, "its d_model"),
        ("layers", 24, "its layers"),
        ("repeats", 3, "turns"),
    )
    args = parser.parse_args(argv)

    if args.model:
        opened = load_model(args.model, make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), "float32").for_decoding()
        model, params = opened.model, opened.params
        ids = tokenizer.load(args.model).backend.encode(common.SEED_PAIRS.read_text()).ids
        tokens = np.array(ids[: len(ids) // args.rows * args.rows]).reshape(args.rows, -1)[:, :SLOTS]
    else:
        model = Model(common.llama(args.vocab, args.width, args.layers, SLOTS))
        params = model.init(jax.random.key(0))
        tokens = np.random.default_rng(0).integers(0, args.vocab, (args.rows, SLOTS))
    step, logits = _step(model, params, jnp.asarray(tokens, jnp.int32))
    if not args.model:
        logits = 3 * jax.random.normal(jax.random.key(1), logits.shape)
    print(f"{sum(x.size for x in jax.tree.leaves(params)) / 1e6:.0f}M parameters, {len(logits)} rows of {logits.shape[1]} tokens")

    ways: dict[str, Callable[[], object]] = {"step": step}
    for name, settings in WARPS.items():
        by = Warp(*(jnp.full(len(logits), x) for x in settings))
        site = Site(jnp.zeros((len(logits), 2), jnp.uint32), jnp.arange(len(logits)), by)
        ways |= {way + name: _run(f, logits, site) for way, f in (("", draw), ("plain: ", plain)) if way == "" or settings[0]}
    seconds = common.interleave(ways, args.repeats)
    rows = common.table(seconds, "step", dict.fromkeys(ways, len(logits)), "tokens")
    print("\nthe plain way's time over ours:")
    gains = {}
    for name in WARPS:
        if (other := f"plain: {name}") in seconds:
            gains[name] = statistics.median(a / b for a, b in zip(seconds[other], seconds[name], strict=True))
            print(f"{name:26} {gains[name]:.0f}x")
    common.write_json(args.json, {"arguments": vars(args), "rows": rows, "gains": gains, "seconds": seconds})
    return 0


def plain(logits: jax.Array, site: Site) -> jax.Array:
    """A token of each row: all logits sorted, their probabilities summed up to the filters' edges, noise for every token."""
    R, V = logits.shape
    temperature, top_k, top_p = (jnp.asarray(x)[:, None] for x in (site.warp.temperature, site.warp.top_k, site.warp.top_p))
    z = logits / temperature
    ordered = -jnp.sort(-z, axis=-1)
    ordered = jnp.where(jnp.arange(V) < jnp.where(top_k > 0, top_k, V), ordered, -jnp.inf)
    p = jax.nn.softmax(ordered, axis=-1)
    edge = jnp.where(jnp.cumsum(p, axis=-1) - p < top_p, ordered, jnp.inf).min(-1, keepdims=True)
    keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(site.keys, impl="threefry2x32"), site.positions)
    return jnp.argmax(jnp.where(z >= edge, z, -jnp.inf) + jax.vmap(lambda key: jax.random.gumbel(key, (V,)))(keys), axis=-1)


def _step(model: Model, params: Params, tokens: jax.Array) -> tuple[Callable[[], object], jax.Array]:
    """The model's part of a step, and the [R, V] logits that it finds behind `tokens` [R, T]."""

    R, T = tokens.shape
    table = jnp.arange(R)[:, None]  # a page each

    @partial(jax.jit, donate_argnums=1, static_argnums=2)
    def read(params: Params, cache: KVPages, first: int) -> tuple[jax.Array, KVPages]:
        """The tokens from number `first` on, of which the last one's logits are wanted."""
        positions = jnp.broadcast_to(jnp.arange(first, T), (R, T - first))
        hidden, cache = model.decode(params, cache, tokens[:, first:], positions, table)
        return model.unembed(params, hidden[:, -1:])[:, 0], cache

    at_work = {"cache": read(params, model.empty_cache(R, T), 0)[1]}

    def run() -> jax.Array:
        logits, at_work["cache"] = read(params, at_work["cache"], T - 1)
        return jax.block_until_ready(logits)

    return run, run()


def _run(way: Callable[[jax.Array, Site], jax.Array], logits: jax.Array, site: Site) -> Callable[[], object]:
    compiled = jax.jit(way)
    return lambda: jax.block_until_ready(compiled(logits, site))


if __name__ == "__main__":
    sys.exit(main())
