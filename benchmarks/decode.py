"""Tokens a second of decoding: our jitted loop, the same a dispatch a token, and transformers' `generate`, on the same random weights.

Greedy, prompts of different lengths (transformers': padded on the left), no end token, so that every way makes the same number of tokens. Their
tokens are compared first. Weights are float32, caches are filled anew by each turn, compilation isn't counted.
"""

import argparse
import statistics
import sys
import tempfile

import jax
import torch
import transformers

from benchmarks import common
from lpo_jax.config import MeshConfig
from lpo_jax.decode import Request, Sampler, SamplingConfig
from lpo_jax.decode.load import load_model
from lpo_jax.sharding import make_mesh


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("benchmarks.decode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_numbers(
        parser,
        ("rows", 16, "prompts in a batch"),
        ("prompt", 64, "tokens of the longest prompt; the shortest has half"),
        ("new", 128, "tokens to generate for each"),
        ("width", 256, "the model's d_model"),
        ("layers", 4, "the model's layers"),
        ("vocab", 8192, "the model's vocabulary"),
        ("repeats", 5, "turns"),
    )
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=args.vocab, hidden_size=args.width, intermediate_size=3 * args.width, num_hidden_layers=args.layers,
        num_attention_heads=args.width // 32, num_key_value_heads=args.width // 64, max_position_embeddings=args.prompt + args.new,
        initializer_range=0.05, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        ours = load_model(directory, make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), "float32")
    tok, prompts = common.number_tokenizer(args.vocab), common.random_prompts(args.rows, args.prompt, args.vocab)

    def sampler(steps: int) -> Sampler:
        greedy = SamplingConfig(temperature=0, max_new_tokens=args.new)
        return Sampler(ours, tok, greedy, args.rows, args.prompt + args.new, segment_steps=steps)

    requests = [Request(str(i), prompt) for i, prompt in enumerate(prompts)]
    padded = torch.tensor([[0] * (args.prompt - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (args.prompt - len(p)) + [1] * len(p) for p in prompts])

    def ask(sampler: Sampler) -> dict[str, list[int]]:
        return {c.id: list(c.tokens) for c in sampler.generate(requests)}

    def generate() -> dict[str, list[int]]:
        with torch.no_grad():
            out = theirs.generate(padded, attention_mask=mask, do_sample=False, max_new_tokens=args.new, pad_token_id=0)
        return {str(i): row[args.prompt :].tolist() for i, row in enumerate(out)}

    whole, single = sampler(args.new), sampler(1)
    ways = {"loop": lambda: ask(whole), "a dispatch a token": lambda: ask(single), "transformers": generate}
    found = {name: run() for name, run in ways.items()}
    agree = {
        name: statistics.mean(a == b for key in tokens for a, b in zip(tokens[key], found["loop"][key], strict=True))
        for name, tokens in found.items()
    }
    print("tokens equal to the loop's:", ", ".join(f"{name} {share:.2%}" for name, share in agree.items()))
    seconds = common.interleave(ways, args.repeats)
    rows = common.table(seconds, "loop", dict.fromkeys(ways, args.rows * args.new), "tokens")
    common.write_json(args.json, {"arguments": vars(args), "agree": agree, "rows": rows, "seconds": seconds})
    return 0


if __name__ == "__main__":
    sys.exit(main())
