"""One tiny random model of each family, as transformers' configs. Every value that could be mistaken for a default isn't one."""

import numpy as np
import torch
import transformers

SHAPE = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "rms_norm_eps": 3e-4, "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": 0,
}  # fmt: skip
GPT_SHAPE = {
    "vocab_size": 97, "n_embd": 64, "n_inner": 80, "n_layer": 3, "n_head": 4, "n_positions": 64, "layer_norm_epsilon": 3e-4,
    "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": 0,
}  # fmt: skip

EXPERTS = {
    "num_experts": 5,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "router_aux_loss_coef": 0.03,
    "output_router_logits": False,
}


def rope(theta, **more):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta} | more}


def llama_like(cls, **options):
    return cls(**{k: v for k, v in SHAPE.items() if k != "rms_norm_eps" or "norm_epsilon" not in options}, **options)


NO_PAD = {"pad_token_id": None}  # torch computes no gradient of that row


# Every value that could be mistaken for a default isn't one.
FAMILIES = {
    "llama untied": lambda: llama_like(transformers.LlamaConfig, **rope(5e5), tie_word_embeddings=False),
    "llama tied, own head_dim": lambda: llama_like(transformers.LlamaConfig, **rope(3e4), tie_word_embeddings=True, head_dim=16),
    "llama biases": lambda: llama_like(transformers.LlamaConfig, **rope(3e4), attention_bias=True, mlp_bias=True),
    "llama linear rope (DeepSeek-Coder)": lambda: llama_like(transformers.LlamaConfig, **rope(1e5, rope_type="linear", factor=4.0)),
    "llama3 rope": lambda: llama_like(
        transformers.LlamaConfig,
        **rope(500.0, rope_type="llama3", factor=8.0, low_freq_factor=1.5, high_freq_factor=3.0, original_max_position_embeddings=40),
    ),
    "mistral window": lambda: llama_like(transformers.MistralConfig, **rope(2e5), sliding_window=7, head_dim=16),
    "mistral": lambda: llama_like(transformers.MistralConfig, **rope(2e5), sliding_window=None),
    "qwen2 untied": lambda: llama_like(transformers.Qwen2Config, **rope(1e6), tie_word_embeddings=False),
    "qwen2 tied": lambda: llama_like(transformers.Qwen2Config, **rope(2e5), tie_word_embeddings=True),
    "qwen3": lambda: llama_like(transformers.Qwen3Config, **rope(2e5), head_dim=16),
    "qwen3_moe": lambda: llama_like(transformers.Qwen3MoeConfig, **rope(2e5), head_dim=16, **EXPERTS, norm_topk_prob=True),
    "qwen3_moe weights of all": lambda: llama_like(transformers.Qwen3MoeConfig, **rope(2e5), head_dim=16, **EXPERTS, attention_bias=True),
    "starcoder2 window": lambda: llama_like(transformers.Starcoder2Config, **rope(9e4), norm_epsilon=3e-4, sliding_window=7),
    "starcoder2 untied, no bias": lambda: llama_like(
        transformers.Starcoder2Config, **rope(9e4), norm_epsilon=3e-4, use_bias=False, tie_word_embeddings=False
    ),
    "gpt_bigcode": lambda: transformers.GPTBigCodeConfig(**GPT_SHAPE),
    "codegen": lambda: transformers.CodeGenConfig(**GPT_SHAPE, rotary_dim=8),
    "qwen2 yarn": lambda: llama_like(
        transformers.Qwen2Config,
        **rope(50.0, rope_type="yarn", factor=4.0, beta_fast=1.5, beta_slow=0.7, original_max_position_embeddings=16),
    ),
    "llama yarn, all keys": lambda: llama_like(
        transformers.LlamaConfig,
        head_dim=16,
        **rope(
            90.0,
            rope_type="yarn",
            factor=5.0,
            beta_fast=2.5,
            beta_slow=0.4,
            mscale=0.7,
            mscale_all_dim=0.3,
            truncate=False,
            original_max_position_embeddings=16,
        ),
    ),
    "phi3 window": lambda: llama_like(transformers.Phi3Config, **NO_PAD, **rope(3e4), sliding_window=7),
    "phi3 longrope": lambda: llama_like(
        transformers.Phi3Config,
        **NO_PAD,
        tie_word_embeddings=True,
        original_max_position_embeddings=32,
        **rope(
            3e4,
            rope_type="longrope",
            short_factor=[1.1, 1.3, 2.5],
            long_factor=[1.2, 3.0, 9.0],
            original_max_position_embeddings=32,
            partial_rotary_factor=0.75,
        ),
    ),
    "granite": lambda: llama_like(
        transformers.GraniteConfig,
        **rope(3e4),
        tie_word_embeddings=True,
        attention_bias=True,
        embedding_multiplier=1.7,
        residual_multiplier=0.6,
        attention_multiplier=0.21,
        logits_scaling=3.5,
    ),
    "smollm3": lambda: llama_like(transformers.SmolLM3Config, **NO_PAD, **rope(3e4), no_rope_layers=[1, 0, 1], tie_word_embeddings=False),
    "gemma3": lambda: llama_like(
        transformers.Gemma3TextConfig,
        **NO_PAD,
        head_dim=16,
        sliding_window=7,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=23,
        attention_bias=True,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 3e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 200.0},
        },
    ),
    "phi": lambda: transformers.PhiConfig(
        **{k: v for k, v in SHAPE.items() if k != "rms_norm_eps"}, layer_norm_eps=3e-4, **rope(7e4, partial_rotary_factor=0.5)
    ),
}


def as_in_files(tensors):
    """A model's tensors by the names that they have in files: transformers 5 fuses a layer's experts in memory."""
    found = {}
    for name, value in tensors.items():
        module, _, last = name.rpartition(".")
        if module.endswith("experts"):
            halves = zip(("gate_proj", "up_proj"), np.split(value, 2, axis=1), strict=True) if last == "gate_up_proj" else [(last, value)]
            found |= {f"{module}.{i}.{part}.weight": one for part, values in halves for i, one in enumerate(values)}
        else:
            found[name] = value
    return found


TOKENS = np.random.default_rng(0).integers(0, 97, (2, 29))


def torch_base(directory):
    """The model in a directory, as transformers computes it."""
    return transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()


def torch_logits(model):
    """What it says of `TOKENS`."""
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


def save_llama(directory, width, inside):
    """A random llama of 512 ids in `directory`, for runs that begin with weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=width, intermediate_size=inside, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=1024, initializer_range=0.1, tie_word_embeddings=False, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory
