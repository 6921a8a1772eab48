"""Tokens a second of co-decoding: the target alone, with its security model a token at a time, and in blocks of several sizes.

Both models compute like any other of their size, but their layers' output matrices are 0 and the target's table and head are the security
model's, widened, plus noise: so they agree as often as --noise lets them, and the share of proposals that is taken is a setting of the benchmark.
Drawn at the protocol's temperature 0.4 and top-p 0.95; no end token, so that every way makes as many tokens, and their tokens are compared first.
Weights are float32, caches are filled anew by each turn, compilation isn't counted.

Also printed: the share taken at which blocks of each size cost as much as single steps (from the times measured here).
"""

import argparse
import statistics
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from benchmarks import common
from lpo_jax.config import MeshConfig
from lpo_jax.decode import CoDecoding, Completion, LoadedModel, Request, Sampler, SamplingConfig
from lpo_jax.model.decoder import Model, Params
from lpo_jax.sharding import make_mesh

BLOCKS = (2, 4, 8)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("benchmarks.codecode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_numbers(
        parser,
        ("rows", 1, "prompts in a batch"),
        ("new", 64, "tokens to generate for each"),
        ("width", 768, "the target's d_model"),
        ("layers", 8, "the target's layers"),
        ("expert-width", 256, "the security model's d_model"),
        ("expert-layers", 6, "the security model's layers"),
        ("vocab", 8192, "the vocabulary of both"),
        ("repeats", 5, "turns"),
    )
    parser.add_argument("--noise", type=float, default=0.25, help="of the target's head, beside the security model's (default: 0.25)")
    parser.add_argument("--threshold", type=float, default=0.3, help="tau (default: 0.3)")
    args = parser.parse_args(argv)

    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    tokens = 64 + args.new
    small = Model(common.llama(args.vocab, args.expert_width, args.expert_layers, tokens))
    big = Model(common.llama(args.vocab, args.width, args.layers, tokens))
    expert, target = _agreeing(small, big, args.noise)
    sizes = [sum(x.size for x in jax.tree.leaves(params)) for params in (target, expert)]
    print(f"target {sizes[0] / 1e6:.1f}M parameters, security model {sizes[1] / 1e6:.1f}M: 1 / {sizes[0] / sizes[1]:.1f}")
    config = SamplingConfig(max_new_tokens=args.new)

    def sampler(block: int | None, alone: bool = False) -> Sampler:
        pair = None if alone else LoadedModel(small, expert, mesh)
        return Sampler(
            LoadedModel(big, target, mesh), common.number_tokenizer(args.vocab), config, args.rows, tokens,
            security=pair, rule=None if alone else CoDecoding(args.threshold), block=block, segment_steps=args.new,
        )  # fmt: skip

    rng = np.random.default_rng(0)
    requests = [Request(str(i), rng.integers(0, args.vocab - 1, 32).tolist(), seed=i) for i in range(args.rows)]
    ways = (
        {"target alone": sampler(1, alone=True), "block 1": sampler(1)}
        | {f"block {k}": sampler(k) for k in BLOCKS}
        | {"by share": sampler(None)}
    )
    found = {name: {c.id: c for c in way.generate(requests)} for name, way in ways.items()}
    share = statistics.mean(x for c in found["block 1"].values() for x in c.facts["accepted"])
    agree = {
        name: statistics.mean(a == b for key in got for a, b in zip(got[key].tokens, found["block 1"][key].tokens, strict=False))
        for name, got in found.items()
        if name != "target alone"
    }
    counts: dict[str, float] = {name: sum(len(c.tokens) for c in got.values()) for name, got in found.items()}
    print(f"proposals taken: {share:.1%}; tokens equal to block 1's:", ", ".join(f"{name} {x:.1%}" for name, x in agree.items()))
    seconds = common.interleave({name: partial(_all, way, requests) for name, way in ways.items()}, args.repeats)
    rows = common.table(seconds, "block 1", counts, "tokens")
    step = {name: statistics.median(seconds[name]) / counts[name] for name in ways}
    even = {k: _break_even(step["block 1"], step[f"block {k}"], k, share) for k in BLOCKS}
    print(f"a co-decoded token costs {step['block 1'] / step['target alone']:.2f} of the target's alone")
    print("blocks pay from a share taken of", ", ".join(f"{k}: {x:.0%}" for k, x in even.items()))
    facts = {"arguments": vars(args), "parameters": sizes, "taken": share, "agree": agree, "break_even": even}
    common.write_json(args.json, facts | {"rows": rows, "seconds": seconds})
    return 0


def _all(sampler: Sampler, requests: list[Request]) -> list[Completion]:
    return list(sampler.generate(requests))


def _agreeing(small: Model, big: Model, noise: float) -> tuple[Params, Params]:
    """Parameters of both models."""
    expert, target = small.init(jax.random.key(0)), big.init(jax.random.key(1))
    for params in (expert, target):
        params["blocks"] |= {name: jnp.zeros_like(params["blocks"][name]) for name in ("o", "down")}
    width, narrow = big.config.d_model, small.config.d_model
    copies, rest = -(-width // narrow), slice(0, width)
    # 8 / sqrt(D): logits with the spread of a trained model's.
    expert["head"] = 8 / narrow**0.5 * jax.random.normal(jax.random.key(2), expert["head"].shape)
    wide = jnp.tile(expert["head"], (copies, 1))[rest] * (narrow / width)
    target["head"] = wide + noise * 8 / width**0.5 * jax.random.normal(jax.random.key(3), wide.shape)
    target["embed"] = jnp.tile(expert["embed"], (1, copies))[:, rest]
    return expert, target


def _break_even(single: float, blocked: float, k: int, share: float) -> float:
    """The share at which a block of k, which appends 1 + a + ... + a^(k - 1) tokens, costs as much a token as single steps."""
    appended = lambda a: sum(a**i for i in range(k))  # noqa: E731
    block = blocked * appended(share)  # seconds
    if appended(1) * single < block:
        return float("nan")  # never
    return float(scipy.optimize.brentq(lambda a: appended(a) * single - block, 0, 1)) if single < block else 0.0


if __name__ == "__main__":
    sys.exit(main())
