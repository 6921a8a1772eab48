"""The sampler against transformers' `generate` and logits processors, and what it promises about batches, slots and devices."""

import jax
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from data_pipeline.tokenizer import Tokenizer
from lpo_jax.config import MeshConfig
from lpo_jax.decode import LoadedModel, Request, Sampler, SamplingConfig
from lpo_jax.model import hf
from lpo_jax.model.decoder import Model
from lpo_jax.sharding import make_mesh
from lpo_jax.train.state import param_shardings
from tests.model.test_parity import FAMILIES

VOCAB = 97  # that of FAMILIES; token 0 ends a text
GREEDY = SamplingConfig(temperature=0, max_new_tokens=20)
PROMPTS = [np.random.default_rng(n).integers(1, VOCAB, n).tolist() for n in (5, 1, 13, 33, 8, 21, 5, 2, 40, 9)]


def tokenizer(size=VOCAB):
    """Token i is a word: "<end>" for 0, else "w" and its number."""
    words = {"<end>": 0} | {f"w{i}": i for i in range(1, size)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<end>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<end>"])
    return Tokenizer(backend, 0, None)


def torch_model(family):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(FAMILIES[family](), attn_implementation="eager").eval()


def load(directory, mesh=MeshConfig(1, 1, 1), dtype="float32"):
    count = abs(mesh.data * mesh.fsdp * mesh.tensor)
    on = make_mesh(mesh, jax.devices()[:count])
    model = Model(hf.read_config(directory), compute_dtype=dtype, param_dtype=dtype)
    return LoadedModel(model, hf.read_params(directory, model, param_shardings(model, on)), on)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llama")
    torch_model("llama untied").save_pretrained(directory)
    return directory


def requests(**more):
    return [Request(f"r{i}", prompt, seed=i, **more) for i, prompt in enumerate(PROMPTS)]


def run(sampler, asked):
    return {(c.id, c.sample): c for c in sampler.generate(asked)}


@pytest.mark.parametrize("family", ["llama untied", "mistral window", "qwen2 tied", "starcoder2 window", "gpt_bigcode", "codegen", "phi"])
def test_greedy_is_transformers_generate(family, tmp_path):
    """Ten prompts through four rows, so that rows are replaced too."""
    theirs = torch_model(family)
    theirs.save_pretrained(tmp_path)
    found = run(Sampler(load(tmp_path), tokenizer(), GREEDY, 4, 64, segment_steps=7), requests())
    for request in requests():
        ids = torch.tensor([request.prompt])
        with torch.no_grad():
            out = theirs.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20, eos_token_id=0, pad_token_id=0
            )
            logits = theirs(out).logits[0, len(request.prompt) - 1 : -1]
        ours = found[request.id, 0]
        assert list(ours.tokens) == out[0, len(request.prompt) :].tolist()
        assert ours.finish == ("stop" if ours.tokens[-1] == 0 else "length")
        assert ours.text.split() == [f"w{t}" for t in ours.tokens if t]
        expected = torch.log_softmax(logits, -1).gather(-1, torch.tensor(ours.tokens)[:, None])[:, 0]
        np.testing.assert_allclose(ours.logprobs, expected, atol=2e-4)
