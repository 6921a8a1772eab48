"""`lpo-data pivots` through `lpo serve`: a model whose weights are made by hand writes the program that its last token allows, and that token is found."""

import json
import re
import threading

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from data_pipeline import pairs
from data_pipeline.cli import main
from data_pipeline.pairs import Pair
from data_pipeline.tokenizer import Tokenizer
from lpo_jax.decode import Sampler, SamplingConfig
from lpo_jax.serve import server as serving
from lpo_jax.serve.driver import Driver
from lpo_jax.serve.protocol import Served
from tests.helpers.sampling import load

WORDS = ["<end>", "Hash", " it.", "\n\n", "```python\n", "import hashlib\n", "def f(data):\n", "    return hashlib.", "sha256", "md5", "(data)\n", "```", "sha512"]  # fmt: skip
NEXT = {"Hash": " it.", " it.": "\n\n", "\n\n": "```python\n", "```python\n": "import hashlib\n", "import hashlib\n": "def f(data):\n"}
NEXT |= {
    "def f(data):\n": "    return hashlib.",
    "sha256": "(data)\n",
    "md5": "(data)\n",
    "sha512": "(data)\n",
    "(data)\n": "```",
    "```": "<end>",
}
CHANCES = {"sha256": 0.3, "md5": 0.6, "sha512": 0.1}  # behind "    return hashlib."


def chain_tokenizer():
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<end>"))
    known = "|".join(sorted((re.sub(r"[().`]", r"\\\g<0>", word).replace("\n", "\\n") for word in WORDS[1:]), key=len, reverse=True))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(known), "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens(["<end>"])
    return Tokenizer(backend, 0, None)


def chain_model(directory):
    """A bigram model: one-hot embeddings, layers that add nothing, and a head that holds the logits of what follows each token."""
    size = 16
    config = transformers.LlamaConfig(
        vocab_size=size, hidden_size=size, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=None, eos_token_id=0, rms_norm_eps=1e-12,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    follows = np.full((size, size), -30.0)
    for word, after in NEXT.items():
        follows[WORDS.index(word), WORDS.index(after)] = 0
    for word, chance in CHANCES.items():
        follows[WORDS.index("    return hashlib."), WORDS.index(word)] = np.log(chance)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.copy_(torch.from_numpy(follows.T / np.sqrt(size)))  # the norm makes sqrt(size) of the one
    model.save_pretrained(directory)


@pytest.mark.slow
def test_the_token_is_found_through_our_own_sampler(tmp_path):
    tok = chain_tokenizer()
    tok.save(tmp_path / "tok")
    chain_model(tmp_path / "model")
    code = "import hashlib\ndef f(data):\n    return hashlib.{}(data)"
    pair = Pair("hash", code.format("sha256"), code.format("md5"), instruction="Hash it.", cwe="CWE-327")
    pairs.write([pair], tmp_path / "pairs.jsonl")
    sampler = Sampler(load(tmp_path / "model"), tok, SamplingConfig(), 16, 64, segment_steps=4)
    driver = Driver(sampler, 512)
    driver.warm_up()
    served = Served("chain", tok, sampler.vocab, sampler.max_len_tokens, lambda messages: [1], "fp")
    bound = serving.bind("127.0.0.1", 0)
    server = serving.Server(driver, served, None, 5.0)
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    command = ["pivots", str(tmp_path / "pairs.jsonl"), "--tokenizer", str(tmp_path / "tok"), "--template", "plain", "--model", "chain"]
    command += ["--judges", "bandit", "--base-url", f"{serving.address(bound)}/v1", "--samples", "100", "--max-tokens", "20"]
    try:
        assert [main([*command, "-o", str(tmp_path / name)]) for name in ("a.jsonl", "b.jsonl")] == [0, 0]
    finally:
        server.should_exit = True
        thread.join(30)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()  # two jobs, each with its own journal
    (row,) = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    for side, word in (("chosen", "sha256"), ("rejected", "md5")):
        (token,) = row["pivots"][side]["tokens"]
        assert token["text"] == word and [row[side][a:b] for a, b in row[f"{side}_spans"]] == [word]
        assert abs(token["before"] - 0.4) < 0.15 and token["after"] == float(side == "chosen")
