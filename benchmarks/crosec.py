"""CroSec with two real tokenizers and random models: what the alignment finds, its time and memory, and what a co-decoded token costs.

    python -m benchmarks.crosec TARGET_TOKENIZER EXPERT_TOKENIZER [--widths 1024 896]

Random embeddings have no neighbours: only tokens with the same text correspond, and the time is that of real ones. The models that then decode
have these tables; float32, compilation isn't counted. The host's share: the expert's text is tokenised anew at each token.
"""

import argparse
import resource
import statistics
import sys
import time
from functools import partial

import jax

from benchmarks import common
from data_pipeline import tokenizer
from foundation.files import Json
from lpo_jax.config import MeshConfig, ModelConfig
from lpo_jax.decode import LoadedModel, Request, Sampler, SamplingConfig
from lpo_jax.decode.cross_sampler import CrossSampler
from lpo_jax.decode.rules.vocab_map import align, vocabulary
from lpo_jax.model.decoder import Model
from lpo_jax.sharding import make_mesh

PROMPT = "def read_user(connection, name):\n    # returns the row of a user\n    cursor = connection.cursor()\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("benchmarks.crosec", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizers", nargs=2, metavar="TOKENIZER", help="the target's, the expert's")
    parser.add_argument("--widths", nargs=2, type=int, default=(1024, 896), metavar="D", help="of their embeddings (default: 1024 896)")
    common.add_numbers(
        parser,
        ("layers", 4, "of both models"),
        ("rows", 4, "at once"),
        ("new", 32, "tokens a row"),
        ("repeats", 3, "turns"),
    )
    args = parser.parse_args(argv)

    tok, its = (tokenizer.load(name) for name in args.tokenizers)
    target, expert = (_model(tok.size, args.widths[0], args.layers, 0), _model(its.size, args.widths[1], args.layers, 1))
    start = time.perf_counter()
    found = align(vocabulary(target, tok), vocabulary(expert, its))
    facts: Json = {
        "arguments": vars(args),
        "seconds": time.perf_counter() - start,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "expert_tokens_with_a_counterpart": float((found.votes_for >= 0).mean()),
        "target_tokens_heard": float(found.heard.mean()),
        "target_tokens_mapped": float((found.nearest >= 0).mean()),
    }
    print("\n".join(f"{name}: {value:.4g}" for name, value in facts.items() if isinstance(value, float)))

    longest = len(tok.backend.encode(PROMPT).ids) + 2 + args.new
    config = SamplingConfig(max_new_tokens=args.new)
    requests = [Request(str(i), PROMPT, seed=i) for i in range(args.rows)]
    ways: dict[str, Sampler | CrossSampler] = {
        "target alone": Sampler(target, tok, config, args.rows, longest, segment_steps=1),
        "crosec": CrossSampler(target, expert, tok, its, found, config, args.rows, longest, expert_len_tokens=8 * longest),
    }
    counts: dict[str, float] = {name: sum(len(c.tokens) for c in way.generate(requests)) for name, way in ways.items()}
    seconds = common.interleave({name: partial(lambda way: list(way.generate(requests)), way) for name, way in ways.items()}, args.repeats)
    rows = common.table(seconds, "target alone", counts, "tokens")
    cost = {name: statistics.median(seconds[name]) / counts[name] for name in ways}
    print(f"a co-decoded token costs {cost['crosec'] / cost['target alone']:.2f} of the target's alone")
    common.write_json(args.json, facts | {"rows": rows, "times": seconds})
    return 0


def _model(vocab: int, width: int, layers: int, seed: int) -> LoadedModel:
    model = Model(ModelConfig("llama", vocab, width, layers, width // 64, width // 64, 64, 11 * width // 4, 1024))
    return LoadedModel(model, model.init(jax.random.key(seed)), make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))


if __name__ == "__main__":
    sys.exit(main())
