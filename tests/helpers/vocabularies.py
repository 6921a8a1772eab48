"""Small tokenizers of the kinds that models have, and random models for them."""

import json
import string

import jax
import pytest
import tokenizers
from hypothesis import strategies as st
from tokenizers import decoders, normalizers, pre_tokenizers

from data_pipeline import tokenizer
from data_pipeline.tokenizer import Tokenizer
from lpo_jax.config import MeshConfig, ModelConfig
from lpo_jax.decode import LoadedModel
from lpo_jax.model.decoder import Model
from lpo_jax.sharding import make_mesh
from lpo_jax.train.state import param_shardings

CODE = [
    "def read(path):\n    with open(path) as file:\n        return file.read()\n",
    "import os, sys\nfor name in os.listdir('.'):\n    print(name, file=sys.stderr)\n",
    "class Größe:\n    '''naïve 日本語 text — “quoted”'''\n\n    def __init__(self, x=1.5):\n        self.x = x  # 100 %\n",
]
PROSE = [
    "The query is built by joining strings, so a quote in the name changes its meaning. Pass the value as a parameter instead.",
    "Never return   the password's hash to the caller; compare it in constant time, and log 12345 nothing of it. Überprüfe é.",
]
PAIRS = [a + b for a in string.ascii_lowercase for b in string.ascii_lowercase]
"""With a token for any two letters a tokenizer often changes its mind about the last."""


def byte_level(texts=CODE, entries=330):
    return tokenizer.train(texts, entries)


def sentencepiece(texts=PROSE, entries=420, parts=()):
    """As CodeLlama's: the space is a letter of words, one stands in front of a text, bytes for what has no token; <s> begins a text. It learns
    from texts, and from parts of words."""
    marked = ["▁" + text.replace(" ", "▁") for text in texts]
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    trained.train_from_iterator(
        [*marked, *parts],
        tokenizers.trainers.BpeTrainer(vocab_size=entries, special_tokens=special, limit_alphabet=60, show_progress=False),
    )
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
    )
    backend.add_special_tokens(special[:3])
    return Tokenizer(backend, 2, 1)


def bytes_only():
    """A token a byte: there is one way to write a text."""
    return tokenizer.train([""], 257)


def words(names, eos="<end>", specials=()):
    """Byte-level, with these names as tokens; it can write bytes only, but for an alignment that's enough."""
    vocab = {name: i for i, name in enumerate([*specials, eos, *names])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([eos, *specials])
    return Tokenizer(backend, vocab[eos], None)


def shape(vocab, **more):
    return ModelConfig(**{
        "family": "llama", "vocab_size": vocab, "d_model": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 4, "d_mlp": 24,
        "max_positions": 512,
    } | more)  # fmt: skip


def loaded(config, seed, mesh=MeshConfig(1, 1, 1), dtype="float64"):
    """A random model with some opinions: its weights are large."""
    on = make_mesh(mesh, jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor])
    model = Model(config, compute_dtype=dtype, param_dtype=dtype)
    params = jax.tree.map(
        lambda x: x * 8 if x.ndim > 2 else x * 10 if x.ndim == 2 and x.shape[0] > 2 else x, model.init(jax.random.key(seed))
    )
    return LoadedModel(model, jax.device_put(params, param_shardings(model, on)), on)


REAL = ("codegen-350m", "codellama", "qwen", "santacoder")
SOME_REAL = [name if name == "codellama" else pytest.param(name, marks=pytest.mark.slow) for name in REAL]
"""To go through them: one in the default tests."""
TEXT = st.lists(
    st.sampled_from(["def", " f", "(x", "\n    ", "  ", "é", "日本", " ", "'s", "1234", "\t", "\r\n", "🦙", "▁", "Ġ", "<0x41>"])
).map("".join)
