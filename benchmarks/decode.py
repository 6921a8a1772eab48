"""Tokens a second of decoding beside transformers' `generate`: same weights, float32, prompts and lengths, in one run.

Cases: one row and many, in rows that have just the room for their text and in rows with room for --long tokens; one long text among short ones;
samples of one prompt; a pair that co-decodes, a token at a time and in blocks. Greedy but for the samples, which are drawn at temperature 1, and
without an end token, so that every way makes the same number of tokens. Greedy texts are compared first. Each turn fills its caches anew, prompts
included; compilation isn't counted.

Without --model it is a tiny random llama.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import torch
import transformers

from benchmarks import common
from data_pipeline.tokenizer import Tokenizer
from foundation.files import Json
from lpo_jax.config import MeshConfig
from lpo_jax.decode import LoadedModel, Request, Sampler, SamplingConfig
from lpo_jax.decode.load import load_model
from lpo_jax.sharding import make_mesh

Way = Callable[[], dict[str, list[int]]]
"""Generates; returns each sample's tokens."""

CASES = ("one", "rows", "long room", "one long", "samples", "pair")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("benchmarks.decode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_numbers(
        parser,
        ("rows", 16, "prompts in a batch, and samples of one prompt"),
        ("prompt", 64, "tokens of the longest prompt; the shortest has half"),
        ("preamble", 1000, "tokens of the prompt that is sampled many times, and of the long one among short ones"),
        ("new", 64, "tokens to generate for each"),
        ("long", 4096, "tokens that the roomy rows could hold"),
        ("repeats", 3, "turns"),
    )
    parser.add_argument("--model", help="a Hugging Face directory (default: a tiny random llama)")
    parser.add_argument("--security", help="that of a security model, for the case pair")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES[:-1], metavar="CASE", help=f"of {', '.join(CASES)}")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        directory = args.model or _tiny(Path(scratch), args.long)
        mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
        ours = replace(load_model(directory, mesh, "float32").for_decoding(), eos_ids=())
        theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        security = load_model(args.security, mesh, "float32").for_decoding() if args.security else None
    theirs.generation_config = transformers.GenerationConfig(pad_token_id=0)
    vocab = ours.model.config.vocab_size
    tok = common.number_tokenizer(vocab)
    prompts = common.random_prompts(args.rows, args.prompt, vocab)
    preamble = common.random_prompts(1, 2 * args.preamble, vocab)[0][: args.preamble]
    result = {}
    for case in args.cases:
        print(f"\n{case}")
        room = args.long if case == "long room" else None
        if case == "pair":
            assert security is not None, "--security is missing"
            ways = _pair(ours, security, tok, prompts, args.new)
        else:
            asked = {"one": prompts[:1], "one long": [preamble, *prompts[1:]], "samples": [preamble]}.get(case, prompts)
            n = args.rows if case == "samples" else 1
            ways = {"ours": _ours(ours, tok, asked, args.new, n, room), "transformers": _generate(theirs, asked, args.new, n)}
        result[case] = _measure(ways, args.new, args.repeats)
    common.write_json(args.json, {"arguments": vars(args), "cases": result})
    return 0


def _tiny(directory: Path, positions: int) -> str:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=8192, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
        max_position_embeddings=positions, initializer_range=0.05, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return str(directory)


def _measure(ways: dict[str, Way], new: int, repeats: int) -> Json:
    found = {name: way() for name, way in ways.items()}  # compiles, too
    base = next(iter(ways))
    agree = {
        name: statistics.mean(a == b for key in tokens for a, b in zip(tokens[key], found[base][key], strict=True))
        for name, tokens in found.items()
    }
    print(f"tokens equal to those of {base}:", ", ".join(f"{name} {share:.2%}" for name, share in agree.items()))
    seconds = common.interleave(ways, repeats, warm_up=False)
    return {"agree": agree, "seconds": seconds, "rows": common.table(seconds, base, dict.fromkeys(ways, new * len(found[base])), "tokens")}


def _config(new: int, n: int) -> SamplingConfig:
    return SamplingConfig(temperature=0 if n == 1 else 1, top_p=1, max_new_tokens=new)


def _run(sampler: Sampler, prompts: Sequence[Sequence[int]], n: int) -> Way:
    requests = [Request(str(i), prompt, n=n) for i, prompt in enumerate(prompts)]
    return lambda: {f"{c.id}.{c.sample}": list(c.tokens) for c in sampler.generate(requests)}


def _ours(model: LoadedModel, tok: Tokenizer, prompts: Sequence[Sequence[int]], new: int, n: int, room: int | None) -> Way:
    longest = room or max(map(len, prompts)) + new
    return _run(Sampler(model, tok, _config(new, n), len(prompts) * n, longest, segment_steps=new), prompts, n)


def _pair(model: LoadedModel, security: LoadedModel, tok: Tokenizer, prompts: Sequence[Sequence[int]], new: int) -> dict[str, Way]:
    longest = max(map(len, prompts)) + new
    ways: dict[str, Way] = {"the target alone": _ours(model, tok, prompts, new, 1, None)}
    for name, block in (("single steps", 1), ("blocks", None)):
        made = Sampler(model, tok, _config(new, 1), len(prompts), longest, security=security, block=block, segment_steps=new)
        ways[name] = _run(made, prompts, 1)
    return ways


def _generate(model: transformers.PreTrainedModel, prompts: Sequence[Sequence[int]], new: int, n: int) -> Way:
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    drawn = {"do_sample": False} if n == 1 else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_return_sequences": n}

    def run() -> dict[str, list[int]]:
        with torch.no_grad():
            out = model.generate(padded, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, **drawn)
        return {f"{i // n}.{i % n}": row[longest:].tolist() for i, row in enumerate(out)}

    return run


if __name__ == "__main__":
    sys.exit(main())
