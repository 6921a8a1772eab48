"""A tiny model, words for its tokens, and requests, for tests of everything that samples."""

import dataclasses

import jax
import numpy as np
import tokenizers
import torch
import transformers

from data_pipeline.tokenizer import Tokenizer
from lpo_jax.config import LoraConfig, MeshConfig
from lpo_jax.decode import LoadedModel, Request
from lpo_jax.model import adapters, hf
from lpo_jax.model.decoder import Model
from lpo_jax.model.peft import save_peft
from lpo_jax.sharding import make_mesh
from lpo_jax.train.state import param_shardings
from tests.helpers.families import FAMILIES

VOCAB = 97  # that of FAMILIES; token 0 ends a text
PROMPTS = [np.random.default_rng(n).integers(1, VOCAB, n).tolist() for n in (5, 1, 13, 33, 8, 21, 5, 2, 40, 9)]


def tokenizer(size=VOCAB):
    """Token i is a word: "<end>" for 0, else "w" and its number."""
    words = {"<end>": 0} | {f"w{i}": i for i in range(1, size)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<end>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<end>"])
    return Tokenizer(backend, 0, None)


def torch_model(family, **more):
    torch.manual_seed(0)
    config = FAMILIES[family]()
    config.update(more)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def processors(temperature, top_k, top_p):
    """transformers' own warpers, in the order in which `generate` builds them."""
    made = [transformers.TemperatureLogitsWarper(temperature)]
    made += [transformers.TopKLogitsWarper(top_k)] if top_k else []
    made += [transformers.TopPLogitsWarper(top_p)] if top_p < 1 else []
    return transformers.LogitsProcessorList(made)


def save_model(directory):
    """A Hugging Face directory with weights and tokenizer."""
    torch_model("llama untied").save_pretrained(directory)
    tokenizer().save(directory)
    return directory


def load(directory, mesh=MeshConfig(1, 1, 1), dtype="float32"):
    count = abs(mesh.data * mesh.fsdp * mesh.tensor * mesh.expert)
    on = make_mesh(mesh, jax.devices()[:count])
    model = Model(hf.read_config(directory), compute_dtype=dtype, param_dtype=dtype)
    return LoadedModel(model, hf.read_params(directory, model, param_shardings(model, on)), on)


def write_adapter(directory, base, seed, targets=".*", rank=3, **more):
    """A PEFT directory with random adapters of the model in `base`."""
    model, config, random = Model(hf.read_config(base)), LoraConfig(rank, 8.0, targets=targets, **more), np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: adapters.init(jax.random.key(0), model, config))
    drawn = jax.tree.map(lambda x: 0.3 * random.standard_normal(x.shape, np.float32), shapes)
    save_peft(directory, model, drawn, config, str(base))
    return str(directory)


def requests(prompts=PROMPTS, **more):
    return [Request(f"r{i}", prompt, seed=i, **more) for i, prompt in enumerate(prompts)]


def run(sampler, asked):
    return {(c.id, c.sample): c for c in sampler.generate(asked)}


def same(found, expected):
    assert found.keys() == expected.keys()
    for key, ours in found.items():
        assert dataclasses.replace(ours, logprobs=()) == dataclasses.replace(expected[key], logprobs=())
        np.testing.assert_allclose(ours.logprobs, expected[key].logprobs, atol=1e-4)
