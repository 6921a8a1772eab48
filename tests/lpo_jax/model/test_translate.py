"""config.json to `ModelConfig` and back: models as they are published, old keys and new, and what is refused."""

import dataclasses
import itertools
import math

import jax
import pytest
import torch
import transformers

from lpo_jax.config import ConfigError, ModelConfig
from lpo_jax.model import hf
from lpo_jax.model.decoder import Model
from lpo_jax.model.translate import config_from_hf, config_to_hf
from tests.helpers import damage
from tests.helpers.families import FAMILIES, SHAPE


def raw(model_type, sizes, **more):
    """A config.json of (vocabulary, width, MLP, layers, heads, kv heads, positions)."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return dict(zip((*names, "max_position_embeddings"), sizes, strict=True)) | {
        "model_type": model_type, "hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    } | more  # fmt: skip


LONG = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
PUBLISHED = {  # as their makers' config.json say it, with the number of parameters that the hub shows
    "SmolLM2-135M": (
        raw("llama", (49152, 576, 1536, 30, 9, 3, 8192), tie_word_embeddings=True, rope_theta=100000, rope_interleaved=False),
        134_515_008,
        {"rope_theta": 1e5, "head_dim": 64, "tied_head": True},
    ),
    "SmolLM2-1.7B": (raw("llama", (49152, 2048, 8192, 24, 32, 32, 8192), tie_word_embeddings=True, rope_theta=130000), 1_711_376_384, {}),
    "Yi-Coder-9B": (raw("llama", (64000, 4096, 11008, 48, 32, 4, 131072), rope_theta=10000000.0), 8_829_407_232, {"rope_theta": 1e7}),
    "Phi-3-mini-4k": (
        raw("phi3", (32064, 3072, 8192, 32, 32, 32, 4096), rope_scaling=None, sliding_window=2047, original_max_position_embeddings=4096),
        3_821_079_552,
        {"window": 2047, "max_positions": 4096},
    ),
    "Phi-3-mini-128k": (
        raw(
            "phi3",
            (32064, 3072, 8192, 32, 32, 32, 131072),
            rope_scaling=LONG | {"type": "su"},
            sliding_window=262144,
            original_max_position_embeddings=4096,
        ),
        3_821_079_552,
        {"max_positions": 4096},
    ),
    "Phi-4": (raw("phi3", (100352, 5120, 17920, 40, 40, 10, 16384), rope_theta=250000, sliding_window=None), 14_659_507_200, {"window": None}),
    "Phi-4-mini": (
        raw(
            "phi3",
            (200064, 3072, 8192, 32, 24, 8, 131072),
            tie_word_embeddings=True,
            rope_scaling=LONG,
            partial_rotary_factor=0.75,
            sliding_window=262144,
            original_max_position_embeddings=4096,
        ),
        3_836_021_760,
        {"rope_dim": 96, "max_positions": 4096},
    ),
    "Granite-3.1-8B": (
        raw(
            "granite",
            (49155, 4096, 12800, 40, 32, 8, 131072),
            tie_word_embeddings=True,
            rope_theta=10000000.0,
            attention_multiplier=0.0078125,
            embedding_multiplier=12.0,
            logits_scaling=16.0,
            residual_multiplier=0.22,
        ),
        8_170_848_256,
        {"score_scale": 1 / 128, "embed_scale": 12.0, "logit_divisor": 16.0, "residual_scale": 0.22},
    ),
    "SmolLM3-3B": (
        raw("smollm3", (128256, 2048, 11008, 36, 16, 4, 65536), tie_word_embeddings=True, rope_theta=5000000.0, no_rope_layers=None)
        | {"layer_types": ["full_attention"] * 36, "use_sliding_window": False},
        3_075_098_624,
        {"layers": ("full", "full", "full", "no_rope") * 9, "rope_theta": 5e6},
    ),
    "Gemma-3-1B": (
        raw("gemma3_text", (262144, 1152, 6912, 26, 4, 1, 32768), hidden_activation="gelu_pytorch_tanh", head_dim=256)
        | {"query_pre_attn_scalar": 256, "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512}
        | {"sliding_window_pattern": 6, "attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": True},
        999_885_952,
        {
            "layers": (*("window",) * 5, "full") * 4 + ("window",) * 2,
            "rope_theta": 1e6,
            "window_rope_theta": 1e4,
            "score_scale": 1 / 16,
            "embed_scale": math.sqrt(1152),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name):
    raw, parameters, values = PUBLISHED[name]
    config = config_from_hf(raw)
    assert {key: getattr(config, key) for key in values} == values
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(Model(config).shapes())) == parameters
    assert config_from_hf(config_to_hf(config)) == config


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_reads_of_ours_is_what_it_wrote(family):
    theirs = FAMILIES[family]()
    again = type(theirs).from_dict(config_to_hf(config_from_hf(theirs.to_dict())))
    assert config_from_hf(again.to_dict()) == config_from_hf(theirs.to_dict())


def test_attention_factors_are_transformers():
    """Through every way to say them, and back."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 16}
    longrope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    longrope |= {"original_max_position_embeddings": 16}
    ways = [
        (transformers.LlamaConfig, yarn | more)
        for more in ({}, {"attention_factor": 1.7}, {"mscale": 0.8, "mscale_all_dim": 0.4}, {"mscale": 0.8}, {"factor": 0.5})
    ]
    ways += [(transformers.LlamaConfig, longrope | more) for more in ({}, {"factor": 3.0}, {"attention_factor": 1.7}, {"factor": 0.5})]
    for cls, rope in ways:
        theirs = cls(**SHAPE, rope_parameters=rope)
        ours = config_from_hf(theirs.to_dict())
        for config in (theirs, cls.from_dict(config_to_hf(ours))):
            rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
            assert rotary.attention_scaling == pytest.approx(ours.rope_scaling.attention_factor, rel=1e-12), rope


GEMMA, PHI3, SMOLLM3 = (FAMILIES[name]().to_dict() for name in ("gemma3", "phi3 longrope", "smollm3"))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (GEMMA | {"model_type": "gemma3"}, "model_type 'gemma3' is not supported; it holds a vision tower too. Save its text model"),
        (GEMMA | {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0 is not supported for gemma3_text, only None"),
        (GEMMA | {"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
        (GEMMA | {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types: 'chunked_attention' is not supported"),
        (GEMMA | {"layer_types": ["full_attention"]}, "layer_types has 1 kinds, num_hidden_layers is 3"),
        (GEMMA | {"sliding_window": None}, "layer_types: some have a sliding_window, but sliding_window is null"),
        (GEMMA | {"query_pre_attn_scalar": None}, "missing query_pre_attn_scalar"),
        (GEMMA | {"rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_type": "yarn"}}}, "rope type 'yarn' is not supported for sliding"),
        (PHI3 | {"rope_parameters": PHI3["rope_parameters"] | {"short_factor": [1.0]}}, r"short_factor and long_factor have \[1, 3\] numbers, both must have 3"),
        (SMOLLM3 | {"no_rope_layers": [1, 2, 1]}, "no_rope_layers: 2 is not supported; supported: 1, 0"),
        (SMOLLM3 | {"use_sliding_window": True}, "use_sliding_window=True is not supported for smollm3"),
        (SMOLLM3 | {"layer_types": ["sliding_attention"] * 3}, "layer_types: 'sliding_attention' is not supported for smollm3"),
    ],
)  # fmt: skip
def test_what_we_do_not_compute_is_refused_by_name(raw, message):
    with pytest.raises(ConfigError, match=message):
        config_from_hf(raw)


def test_sequences_beyond_the_short_factors_are_refused_by_the_key():
    config = config_from_hf(PHI3)
    assert config.limit == "32 tokens (original_max_position_embeddings; longrope isn't computed beyond)"
    with pytest.raises(ConfigError, match=r"max_positions \(33\) must be at most original_positions \(32\)"):
        dataclasses.replace(config, max_positions=33)


def test_shapes_that_contradict_themselves():
    shape = ModelConfig("llama", 31, d_model=24, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=6, d_mlp=40, max_positions=64)
    for change, message in (
        ({"layers": ("full",)}, "layers has 1 kinds, n_layers is 2"),
        ({"layers": ("full", "window")}, "layers: some have a window, but window is null"),
        ({"layers": ("full", "no_rope"), "positions": "learned"}, "no layer without rope"),
        ({"post_norms": True, "parallel": True}, "a parallel block has no post_norms"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(shape, **change)


def test_the_text_model_of_gemma_3_by_the_advice_of_the_error(tmp_path):
    text = {key: value for key, value in GEMMA.items() if key not in ("model_type", "architectures")}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    whole = transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    ).eval()
    whole.save_pretrained(tmp_path / "whole")
    with pytest.raises(ConfigError, match="vision tower") as error:
        hf.read_config(tmp_path / "whole")
    advice = str(error.value).partition("with transformers: ")[2]
    names = {name: getattr(transformers, name) for name in ("Gemma3ForConditionalGeneration", "Gemma3ForCausalLM")}
    exec(advice, names | {"DIR": tmp_path / "whole", "NEW_DIR": tmp_path / "text"})  # it is our own message
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text").eval()
    tokens = torch.arange(5, 25)[None]
    torch.testing.assert_close(saved(tokens).logits, whole(input_ids=tokens).logits)
    assert hf.read_config(tmp_path / "text").family == "gemma3_text"


def absurd(raw):
    """Every key of a config.json with every absurd value, and so of its rope parameters."""
    for key, value in itertools.product((*raw, *MORE_KEYS), damage.ABSURD):
        yield raw | {key: value}
    for where in ("rope_parameters", "rope_scaling"):
        for nested in (None, "full_attention", "sliding_attention"):
            rope = raw.get("rope_parameters") or {}
            for key, value in itertools.product((*(rope.get(nested, rope)), *ROPE_KEYS), damage.ABSURD):
                changed = (rope.get(nested) or rope) | {key: value}
                yield raw | {where: changed if nested is None else rope | {nested: changed}}


MORE_KEYS = ("rope_theta", "rope_local_base_freq", "original_max_position_embeddings", "partial_rotary_factor", "sliding_window_pattern")
ROPE_KEYS = ("type", "factor", "attention_factor", "beta_fast", "mscale", "mscale_all_dim", "truncate", "short_factor", "rope_theta")


@pytest.mark.parametrize("family", ["gemma3", "phi3 longrope", "smollm3", "granite", "llama yarn, all keys", "gpt_bigcode"])
def test_absurd_values_are_refused_or_a_model(family):
    raw = FAMILIES[family]().to_dict()
    made, said = 0, []
    for changed in absurd(raw):
        try:
            config = config_from_hf(changed)
        except ConfigError as error:
            said.append(str(error))
        else:
            made += 1
            assert config_from_hf(config_to_hf(config)) == config, changed
    assert made > 100 and len(said) > 100
    assert [line for line in said if "\n" in line or len(line) > 2000] == []
