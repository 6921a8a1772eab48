"""A model that decodes with quantised weights beside the same in float32: its memory, its logits, its greedy texts, and its tokens a second.

Logits are those behind each token of the tasks' prompts and solutions. Greedy texts go on from the prompts; they are compared up to the first end
token, but go on behind it, so that both ways make the same number of tokens. Each turn of the timing fills its cache anew, prompts included;
compilation isn't counted.
"""

import argparse
import gzip
import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from data_pipeline import tokenizer as tokenizers
from foundation.files import Json
from lpo_jax.config import MeshConfig
from lpo_jax.decode import LoadedModel, Request, Sampler, SamplingConfig
from lpo_jax.decode.load import load_model
from lpo_jax.sharding import make_mesh

CASES = ("logits", "greedy", "speed")

WIDTH = 64
"""Texts are padded to a multiple of so many tokens, and compared where they aren't padded."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("benchmarks.quantized_decode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("model", help="a directory with config.json, *.safetensors and a tokenizer")
    parser.add_argument("tasks", help='a file of {"prompt", "canonical_solution"} a line, as HumanEval.jsonl.gz has them')
    parser.add_argument("--quantize", choices=("int8",), default="int8")
    common.add_numbers(
        parser,
        ("tasks-read", 20, "the first so many are read"),
        ("new", 128, "tokens to generate for each"),
        ("rows", 16, "sequences at work at once"),
        ("repeats", 3, "turns of the timing"),
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    args = parser.parse_args(argv)
    opened = gzip.open if args.tasks.endswith(".gz") else open
    with opened(args.tasks, "rt", encoding="utf-8") as lines:
        tasks = [json.loads(line) for line in lines][: args.tasks_read]
    tok, mesh = tokenizers.load(args.model), make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    ways = {
        "float32": load_model(args.model, mesh, "float32").for_decoding(),
        args.quantize: load_model(args.model, mesh, "float32", quantize=args.quantize).for_decoding(),
    }
    result: Json = {"arguments": vars(args), "bytes": {name: _bytes(way) for name, way in ways.items()}}
    print(", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in result["bytes"].items()), flush=True)
    prompts = [tok.encode(task["prompt"]).ids for task in tasks]
    numbers = common.number_tokenizer(ways["float32"].model.config.vocab_size)  # without an end token
    config = SamplingConfig(temperature=0, top_p=1, max_new_tokens=args.new)

    def samplers() -> dict[str, Sampler]:
        longest = max(map(len, prompts)) + args.new
        return {
            name: Sampler(replace(way, eos_ids=()), numbers, config, args.rows, longest, segment_steps=args.new)
            for name, way in ways.items()
        }

    if "logits" in args.cases:
        result["logits"] = _compare(ways, [tok.encode(task["prompt"] + task["canonical_solution"]).ids for task in tasks])
    if "greedy" in args.cases:
        ends = {tok.eos_id, *ways["float32"].eos_ids}
        texts = [[_cut(text, ends) for text in _generate(sampler, prompts)] for sampler in samplers().values()]
        result["greedy"] = _agreement(*texts)
    for name, value in (*result.get("logits", {}).items(), *result.get("greedy", {}).items()):
        print(f"{name:46} {value:.6g}", flush=True)
    if "speed" in args.cases:
        turns = {name: partial(_generate, sampler, prompts[: args.rows]) for name, sampler in samplers().items()}
        result["seconds"] = common.interleave(turns, args.repeats)
        common.table(result["seconds"], "float32", dict.fromkeys(ways, args.new * min(args.rows, len(prompts))), "tokens")
    common.write_json(args.json, result)
    return 0


def _bytes(way: LoadedModel) -> int:
    return sum(x.on_device_size_in_bytes() for x in jax.tree.leaves(way.params))


def _compare(ways: dict[str, LoadedModel], texts: Sequence[Sequence[int]]) -> dict[str, float]:
    """The second's logits against the first's."""
    first, second = ways.values()

    @jax.jit
    def both(params: Sequence[Json], tokens: jax.Array) -> tuple[jax.Array, ...]:
        a, b = (way.model.logits(p, tokens)[0] for way, p in zip((first, second), params, strict=True))
        p, q = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
        gap = jnp.abs(a - b)
        return gap.max(-1), gap.mean(-1), a.std(-1), (jnp.exp(p) * (p - q)).sum(-1), a.argmax(-1) == b.argmax(-1)

    found = []
    for text in texts:
        tokens = np.pad(np.array(text, np.int32), (0, -len(text) % WIDTH))[None]
        found.append(np.stack([np.asarray(x[: len(text)], np.float64) for x in both((first.params, second.params), tokens)]))
    largest, mean, spread, divergence, same = np.concatenate(found, axis=1)
    return {
        "tokens compared": len(same),
        "largest difference of a logit": largest.max(),
        "mean difference of a logit": mean.mean(),
        "standard deviation of a token's logits": spread.mean(),
        "KL from float32, nats a token": divergence.mean(),
        "KL, the largest of a token": divergence.max(),
        "share of tokens with the same best token": same.mean(),
    }


def _generate(sampler: Sampler, prompts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    found = {c.id: c.tokens for c in sampler.generate(Request(str(i), prompt) for i, prompt in enumerate(prompts))}
    return [found[str(i)] for i in range(len(prompts))]


def _cut(text: Sequence[int], ends: Collection[int]) -> Sequence[int]:
    return text[: next((i for i, token in enumerate(text, 1) if token in ends), len(text))]


def _agreement(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> dict[str, float]:
    """How long greedy texts are the same: the first other token changes all that follow."""
    common_lengths = [next((i for i, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), min(len(x), len(y))) for x, y in zip(one, other, strict=True)]  # fmt: skip
    return {
        "share of greedy texts that are the same": float(np.mean([x == y for x, y in zip(one, other, strict=True)])),
        "share of their tokens before the first other": sum(common_lengths) / sum(map(len, one)),
    }


if __name__ == "__main__":
    sys.exit(main())
