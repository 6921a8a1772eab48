"""Tokens a second of decoding beside transformers' `generate`: same weights, float32, prompts and lengths, in one run.

Cases:
- one, rows: one row and many, greedy, all with --new tokens.
- mixed: three times as many prompts as rows, greedy, whose answers have a quarter of --new tokens to all of them. A row that is done goes to the next
  prompt here; `generate` takes them batch by batch, and a batch lasts as long as its longest answer.
- samples: of one long prompt, drawn at temperature 1.
- pair: a target alone, with its security model a token at a time, and in blocks; drawn as `lpo generate` does, with the share of proposals taken.
- steps: steps alone, prompts read beforehand: short texts in rows that have just the room for them, in rows with room for --long tokens, and beside
  one long text.

There is no end token; each way makes the same tokens, as many as asked. Texts are compared first. But for steps, each turn fills its caches anew,
prompts included; compilation isn't counted.

Without --model it is a tiny random llama, which reads random tokens. A real one is asked what the shipped pairs ask, or the --prompts, as `lpo
generate` would ask it.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import torch
import transformers

from benchmarks import common
from data_pipeline import pairs, tokenizer
from data_pipeline.pairs import Drops
from data_pipeline.tokenizer import Tokenizer
from foundation.files import Json
from lpo_jax.config import MeshConfig
from lpo_jax.decode import LoadedModel, Request, Sampler, SamplingConfig
from lpo_jax.decode import prompts as asked
from lpo_jax.decode.load import load_model
from lpo_jax.decode.sampler import Session
from lpo_jax.sharding import make_mesh

Way = Callable[[], dict[str, list[int]]]
"""Generates; returns each sample's tokens."""

Prompts = Sequence[Sequence[int]]

CASES = ("one", "rows", "mixed", "samples", "pair", "steps")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("benchmarks.decode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_numbers(
        parser,
        ("rows", 16, "prompts in a batch, and samples of one prompt"),
        ("prompt", 64, "tokens of the longest prompt of random tokens; the shortest has half"),
        ("preamble", 1000, "tokens of the prompt that is sampled many times"),
        ("new", 64, "tokens to generate for each"),
        ("text", 100, "steps: tokens of a short text"),
        ("long", 4096, "steps: tokens that the roomy rows could hold; the long text has 596 fewer"),
        ("repeats", 3, "turns"),
    )
    parser.add_argument("--model", help="a Hugging Face directory (default: a tiny random llama)")
    parser.add_argument("--security", help="that of a security model, for the case pair")
    parser.add_argument(
        "--prompts", metavar="JSONL", help="what a real model reads, as `lpo generate` has it (default: the shipped pairs' instructions)"
    )
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, metavar="CASE", help=f"of {', '.join(CASES)} (default: all; pair with --security only)"
    )
    args = parser.parse_args(argv)
    cases = args.cases or [case for case in CASES if case != "pair" or args.security]
    if "pair" in cases and not args.security:
        parser.error("the case pair takes --security MODEL")
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    with tempfile.TemporaryDirectory() as scratch:
        directory = args.model or _tiny(Path(scratch), args.long)
        ours = replace(load_model(directory, mesh, "float32").for_decoding(), eos_ids=())
        theirs = None
        if {*cases} & {"one", "rows", "mixed", "samples"}:
            theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
            theirs.generation_config = transformers.GenerationConfig(pad_token_id=0)
    vocab = ours.model.config.vocab_size
    tok = common.number_tokenizer(vocab)
    prompts = _real(args.model, args.prompts) if args.model else common.random_prompts(max(args.rows, 100), args.prompt, vocab)
    asked_first, everything = prompts[: args.rows], [token for prompt in prompts for token in prompt]
    if len(everything) < args.long or len(prompts) < (many := 3 * args.rows if "mixed" in cases else args.rows):
        parser.error(
            f"the prompts are {len(prompts)} with {len(everything)} tokens: --long asks for {args.long}, --rows for {many} prompts"
        )
    result = {}
    for case in cases:
        print(f"\n{case}")
        if case == "steps":
            result[case] = _steps(ours, tok, everything, args)
            continue
        if case == "pair":
            security = load_model(args.security, mesh, "float32").for_decoding()
            ways = _pair(ours, security, tok, asked_first, args.new)
        else:
            assert theirs is not None
            given, n = {
                "one": (asked_first[:1], 1),
                "rows": (asked_first, 1),
                "mixed": (prompts[: 3 * args.rows], 1),
                "samples": ([everything[: args.preamble]], args.rows),
            }[case]
            spread = np.linspace(args.new / 4, args.new, len(given)) if case == "mixed" else np.full(len(given), args.new)
            new = [int(number) for number in np.random.default_rng(0).permutation(spread)]
            ways = {"ours": _ours(ours, tok, given, new, n, args.rows), "transformers": _generate(theirs, given, new, n, args.rows)}
            print("tokens of the prompts:", ", ".join(str(len(prompt)) for prompt in given))
        result[case] = _measure(ways, args.repeats)
    common.write_json(args.json, {"arguments": vars(args), "cases": result})
    return 0


def _real(model: str, file: str | None) -> list[tuple[int, ...]]:
    """Prompts as `lpo generate` would put them to the model, in a fixed random order."""
    its = tokenizer.load(model)
    how = asked.asking(model, its)
    if file is not None:
        found = [prompt.ids for prompt in asked.read(file, its, how)]
    else:
        texts = dict.fromkeys(pair.instruction for pair in pairs.read(common.SEED_PAIRS, Drops()))
        found = [tuple(how.prompt(text, its).ids(its)) for text in texts]
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def _tiny(directory: Path, positions: int) -> str:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=8192, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
        max_position_embeddings=positions, initializer_range=0.05, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return str(directory)


def _measure(ways: dict[str, Way], repeats: int) -> Json:
    found = {name: way() for name, way in ways.items()}  # compiles, too
    base = next(iter(ways))
    agree = {
        name: statistics.mean(a == b for key in tokens for a, b in zip(tokens[key], found[base][key], strict=True))
        for name, tokens in found.items()
    }
    print(f"tokens equal to those of {base}:", ", ".join(f"{name} {share:.2%}" for name, share in agree.items()))
    seconds = common.interleave(ways, repeats, warm_up=False)
    return {
        "agree": agree,
        "seconds": seconds,
        "rows": common.table(seconds, base, {name: sum(map(len, found[name].values())) for name in ways}, "tokens"),
    }


def _run(sampler: Sampler, requests: Sequence[Request]) -> Way:
    return lambda: {f"{c.id}.{c.sample}": list(c.tokens) for c in sampler.generate(requests)}


def _greedy(new: int) -> SamplingConfig:
    return SamplingConfig(temperature=0, top_p=1, max_new_tokens=new)


def _ours(model: LoadedModel, tok: Tokenizer, prompts: Prompts, new: Sequence[int], n: int, rows: int) -> Way:
    config = _greedy(max(new)) if n == 1 else replace(_greedy(max(new)), temperature=1)
    each = enumerate(zip(prompts, new, strict=True))
    requests = [Request(str(i), prompt, n=n, sampling=replace(config, max_new_tokens=number)) for i, (prompt, number) in each]
    return _run(Sampler(model, tok, config, min(rows, len(prompts) * n), max(map(len, prompts)) + max(new)), requests)


def _pair(model: LoadedModel, security: LoadedModel, tok: Tokenizer, prompts: Prompts, new: int) -> dict[str, Way]:
    config, longest = SamplingConfig(max_new_tokens=new), max(map(len, prompts)) + new
    requests = [Request(str(i), prompt) for i, prompt in enumerate(prompts)]
    ways: dict[str, Way] = {"the target alone": _run(Sampler(model, tok, config, len(prompts), longest), requests)}
    for name, block in (("single steps", 1), ("blocks", None)):
        made = Sampler(model, tok, config, len(prompts), longest, security=security, block=block)
        ways[name] = _run(made, requests)
    taken = [share for c in made.generate(requests) for share in c.facts["accepted"]]
    print(f"taken of the proposals: {statistics.mean(taken):.1%}")
    return ways


def _steps(model: LoadedModel, tok: Tokenizer, tokens: Sequence[int], args: argparse.Namespace) -> Json:
    """Seconds of segments of --new steps, all rows at work."""
    turns, short = args.repeats + 2, args.text  # two to compile and to begin
    starts = range(0, args.rows * short, short)
    texts = [tokens[start : start + short] for start in starts]
    long = [tokens[: args.long - 596], *texts[1:]]
    config = _greedy(args.new * (turns + 1))
    roomy = max(args.long, len(long[0]) + config.max_new_tokens)
    ways = {}
    for name, prompts, room in (
        (f"{args.rows} of {short}", texts, short + config.max_new_tokens),
        (f"room for {roomy}", texts, roomy),
        (f"one of {len(long[0])}", long, roomy),
    ):
        session = Session(Sampler(model, tok, config, args.rows, room, segment_steps=args.new))
        for number, prompt in enumerate(prompts):
            session.add(Request(str(number), prompt))
        ways[name] = session.advance
        session.advance()
    seconds = common.interleave(ways, args.repeats)
    return {"seconds": seconds, "rows": common.table(seconds, next(iter(ways)), dict.fromkeys(ways, args.new * args.rows), "tokens")}


def _generate(model: transformers.PreTrainedModel, prompts: Prompts, new: Sequence[int], n: int, rows: int) -> Way:
    drawn = {"do_sample": False} if n == 1 else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_return_sequences": n}

    def batch(start: int) -> dict[str, list[int]]:
        some, numbers = prompts[start : start + rows], new[start : start + rows]
        longest = max(map(len, some))
        padded = torch.tensor([[0] * (longest - len(p)) + list(p) for p in some])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in some])
        with torch.no_grad():
            out = model.generate(padded, attention_mask=mask, max_new_tokens=max(numbers), min_new_tokens=max(numbers), **drawn)
        return {f"{start + i // n}.{i % n}": row[longest:].tolist()[: numbers[i // n]] for i, row in enumerate(out)}

    return lambda: {key: tokens for start in range(0, len(prompts), rows) for key, tokens in batch(start).items()}


if __name__ == "__main__":
    sys.exit(main())
