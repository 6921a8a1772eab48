"""The model families, as data: what their config.json's keys mean, and what their tensors are called.

A family is one `Family` record, which `lpo_jax.model.translate` reads. Most tensors hold one parameter; a fused one (qkv) holds several.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from foundation.files import Json
from lpo_jax.config import LayerKind


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint."""

    name: str  # Hugging Face's; where each layer has one, {layer} stands for its number, where each expert has one, {expert}
    paths: tuple[str, ...]  # our parameters in it, one after another along its outputs
    is_matrix: bool = False  # it is stored as [outputs, inputs]; ours are [inputs ..., outputs ...]
    partitions: int = 1  # the outputs are cut into so many parts, and each part holds its share of every path

    @property
    def stacked(self) -> bool:
        """Whether each layer has one."""
        return "{layer}" in self.name

    @property
    def of_experts(self) -> bool:
        """Whether each of a layer's experts has one."""
        return "{expert}" in self.name

    def names(self, layers: int, experts: int = 0) -> list[list[str]]:
        """What it is called: in each of the layers, if it is stacked; of each of a layer's experts, if they have one each."""
        numbers = range(experts if self.of_experts else 1)
        return [[self.name.format(layer=layer, expert=i) for i in numbers] for layer in range(layers if self.stacked else 1)]

    def fuse(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The paths' arrays [..., outputs] as one."""
        if len(parts) == 1:
            return parts[0]
        grouped = [part.reshape(*part.shape[:-1], self.partitions, -1) for part in parts]
        return np.concatenate(grouped, axis=-1).reshape(*parts[0].shape[:-1], -1)

    def cut(self, fused: Any, outputs: Sequence[int]) -> list[Any]:
        """The inverse of `fuse`; `outputs` says how many outputs each path has."""
        if len(outputs) == 1:
            return [fused]
        grouped = fused.reshape(*fused.shape[:-1], self.partitions, -1)
        ends = np.cumsum(outputs) // self.partitions
        parts = [grouped[..., start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        return [part.reshape(*fused.shape[:-1], -1) for part in parts]


@dataclass(frozen=True)
class Layers:
    """How a config.json tells layers of two kinds apart."""

    key: str  # a list with a word for each layer
    words: Mapping[str | int, LayerKind]
    interval: str  # the key of a number; where the list is missing, every so many layers one is of the last kind
    every: int  # where the number is missing too


@dataclass(frozen=True)
class Family:
    """What sets a family apart."""

    architecture: str
    keys: Mapping[str, str]  # ModelConfig field -> config.json key, of the same value but for `translate.CONVERTED`
    tensors: tuple[Tensor, ...]
    fixed: Json = field(default_factory=dict)  # ModelConfig fields that every model of the family has
    flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # config.json boolean -> ModelConfig fields
    only: Json = field(default_factory=dict)  # config.json options that are computed for this value alone
    also: Mapping[str, str] = field(default_factory=dict)  # config.json keys by other names that they have there
    defaults: Json = field(default_factory=dict)  # ModelConfig fields where config.json doesn't say
    layers: Layers | None = None
    scaled_embed: bool = False  # by the square root of their width


def _linear(name: str, *paths: str, partitions: int = 1) -> tuple[Tensor, ...]:
    biases = tuple(path + "_bias" for path in paths)
    return Tensor(name + ".weight", paths, True, partitions), Tensor(name + ".bias", biases, False, partitions)


def _norm(name: str, path: str) -> tuple[Tensor, ...]:
    return Tensor(name + ".weight", (path,)), Tensor(name + ".bias", (path + "_bias",))


def _model(
    blocks: Mapping[str, str], embed: str = "model.embed_tokens", layer: str = "model.layers", final_norm: str = "model.norm"
) -> tuple[Tensor, ...]:
    """A family's tensors from the names of its modules. `blocks` maps a parameter of ours to a module of a layer."""
    tensors = [Tensor(embed + ".weight", ("embed",)), *_norm(final_norm, "final_norm"), *_linear("lm_head", "head")]
    for path, module in blocks.items():
        make = _norm if path.endswith("norm") else _linear
        tensors += make(f"{layer}.{{layer}}.{module}", "blocks." + path)
    return tuple(tensors)


_gpt_model = partial(_model, embed="transformer.wte", layer="transformer.h", final_norm="transformer.ln_f")

_ATTENTION = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj"}
_NORMS = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_LLAMA_BLOCKS = _ATTENTION | _NORMS | {"o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
_LLAMA_TENSORS = _model(_LLAMA_BLOCKS)
_QWEN3_TENSORS = _model(_LLAMA_BLOCKS | {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"})
_FUSED_BLOCKS = _NORMS | {"o": "self_attn.o_proj", "down": "mlp.down_proj"}
_PHI3_TENSORS = (
    *_model(_FUSED_BLOCKS),
    *_linear("model.layers.{layer}.self_attn.qkv_proj", "blocks.q", "blocks.k", "blocks.v"),
    *_linear("model.layers.{layer}.mlp.gate_up_proj", "blocks.gate", "blocks.up"),
)
_GEMMA_NORMS = {
    "attn_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}
_GEMMA_TENSORS = _model(_LLAMA_BLOCKS | _GEMMA_NORMS)
_EXPERTS = {f"expert_{name}": f"mlp.experts.{{expert}}.{name}_proj" for name in ("gate", "up", "down")}
_QWEN3_MOE_TENSORS = (
    *_model(_ATTENTION | _NORMS | {"o": "self_attn.o_proj", "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"} | _EXPERTS),
    Tensor("model.layers.{layer}.mlp.gate.weight", ("blocks.router",)),
)
_STARCODER2_TENSORS = _model(_ATTENTION | _NORMS | {"o": "self_attn.o_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"})
_PHI_BLOCKS = _ATTENTION | {"attn_norm": "input_layernorm", "o": "self_attn.dense", "up": "mlp.fc1", "down": "mlp.fc2"}
_PHI_TENSORS = _model(_PHI_BLOCKS, final_norm="model.final_layernorm")
_BIGCODE_TENSORS = (
    *_gpt_model({"attn_norm": "ln_1", "mlp_norm": "ln_2", "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}),
    Tensor("transformer.wpe.weight", ("positions",)),
    *_linear("transformer.h.{layer}.attn.c_attn", "blocks.q", "blocks.k", "blocks.v"),
)
_CODEGEN_TENSORS = (
    *_gpt_model({"attn_norm": "ln_1", "o": "attn.out_proj", "up": "mlp.fc_in", "down": "mlp.fc_out"}),
    # Laid out for four tensor-parallel cores, each with its share of queries, values and keys, in that order.
    *_linear("transformer.h.{layer}.attn.qkv_proj", "blocks.q", "blocks.v", "blocks.k", partitions=4),
)

_OURS = ("vocab_size", "d_model", "n_layers", "n_heads", "d_mlp", "max_positions", "activation")
_NAMES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "hidden_act",
)
_GPT_NAMES = ("vocab_size", "n_embd", "n_layer", "n_head", "n_inner", "n_positions", "activation_function")
_SIZES = dict(zip(_OURS, _NAMES, strict=True))
_GPT_KEYS = dict(zip(_OURS, _GPT_NAMES, strict=True)) | {"norm_eps": "layer_norm_epsilon"}
_LLAMA_KEYS = _SIZES | {"n_kv_heads": "num_key_value_heads", "head_dim": "head_dim", "norm_eps": "rms_norm_eps"}
_LAYER_NORM = {"norm": "layer", "gated_mlp": False}
_ATTENTION_BIAS: dict[str, tuple[str, ...]] = {"attention_bias": ("qkv_bias", "out_bias")}
_MLP_BIAS: dict[str, tuple[str, ...]] = {"mlp_bias": ("mlp_bias",)}
_NO_WINDOW = {"use_sliding_window": False}
_TIED = {"tied_head": True}
_GRANITE_SCALES = {
    "embed_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "score_scale": "attention_multiplier",
    "logit_divisor": "logits_scaling",
}
_GEMMA_KEYS = {"activation": "hidden_activation", "window": "sliding_window", "score_scale": "query_pre_attn_scalar"}

FAMILIES = {
    "llama": Family("LlamaForCausalLM", _LLAMA_KEYS, _LLAMA_TENSORS, flags=_ATTENTION_BIAS | _MLP_BIAS),
    "mistral": Family("MistralForCausalLM", _LLAMA_KEYS | {"window": "sliding_window"}, _LLAMA_TENSORS),
    "qwen2": Family("Qwen2ForCausalLM", _LLAMA_KEYS, _LLAMA_TENSORS, fixed={"qkv_bias": True}, only=_NO_WINDOW),
    "qwen3": Family("Qwen3ForCausalLM", _LLAMA_KEYS, _QWEN3_TENSORS, fixed={"qk_norm": True}, flags=_ATTENTION_BIAS, only=_NO_WINDOW),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        _LLAMA_KEYS
        | {"experts": "num_experts", "experts_per_token": "num_experts_per_tok", "d_expert": "moe_intermediate_size"}
        | {"router_aux_loss_coef": "router_aux_loss_coef"},
        _QWEN3_MOE_TENSORS,
        fixed={"qk_norm": True},
        flags=_ATTENTION_BIAS | {"norm_topk_prob": ("normalized_experts",), "output_router_logits": ("output_router_logits",)},
        only=_NO_WINDOW | {"decoder_sparse_step": 1, "mlp_only_layers": []},
        also={"num_local_experts": "num_experts"},  # transformers 5
        defaults={"router_aux_loss_coef": 0.001},
    ),
    "starcoder2": Family(
        "Starcoder2ForCausalLM",
        _SIZES | {"n_kv_heads": "num_key_value_heads", "norm_eps": "norm_epsilon", "window": "sliding_window"},
        _STARCODER2_TENSORS,
        fixed=_LAYER_NORM,
        flags={"use_bias": ("qkv_bias", "out_bias", "mlp_bias")},
        only={"mlp_type": "default"},
        defaults=_TIED,
    ),
    "gpt_bigcode": Family(
        "GPTBigCodeForCausalLM",
        _GPT_KEYS,
        _BIGCODE_TENSORS,
        fixed=_LAYER_NORM | {"n_kv_heads": 1, "positions": "learned", "qkv_bias": True, "out_bias": True, "mlp_bias": True},
        only={"multi_query": True, "scale_attn_weights": True, "add_cross_attention": False},
        defaults=_TIED,
    ),
    "codegen": Family(
        "CodeGenForCausalLM",
        _GPT_KEYS | {"rope_dim": "rotary_dim"},
        _CODEGEN_TENSORS,
        fixed=_LAYER_NORM | {"rope_interleaved": True, "parallel": True, "mlp_bias": True, "head_bias": True},
    ),
    "phi": Family(
        "PhiForCausalLM",
        _SIZES | {"n_kv_heads": "num_key_value_heads", "norm_eps": "layer_norm_eps"},
        _PHI_TENSORS,
        fixed=_LAYER_NORM | {"parallel": True, "qkv_bias": True, "out_bias": True, "mlp_bias": True, "head_bias": True},
        only={"qk_layernorm": False},
    ),
    "phi3": Family("Phi3ForCausalLM", _LLAMA_KEYS | {"window": "sliding_window"}, _PHI3_TENSORS),
    "granite": Family(
        "GraniteForCausalLM",
        _LLAMA_KEYS | _GRANITE_SCALES,
        _LLAMA_TENSORS,
        flags=_ATTENTION_BIAS | _MLP_BIAS,
        defaults=dict.fromkeys(_GRANITE_SCALES, 1.0),
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        _LLAMA_KEYS,
        _LLAMA_TENSORS,
        flags=_ATTENTION_BIAS | _MLP_BIAS,
        only=_NO_WINDOW,
        defaults=_TIED | {"rope_theta": 2e6},
        layers=Layers("no_rope_layers", {1: "full", 0: "no_rope"}, "no_rope_layer_interval", 4),
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        _LLAMA_KEYS | _GEMMA_KEYS,
        _GEMMA_TENSORS,
        fixed={"norm": "rms_plus_one", "qk_norm": True, "post_norms": True},
        flags=_ATTENTION_BIAS,
        only={"final_logit_softcapping": None, "attn_logit_softcapping": None, "use_bidirectional_attention": False},
        defaults=_TIED | {"head_dim": 256, "rope_theta": 1e6, "window_rope_theta": 1e4},
        layers=Layers("layer_types", {"sliding_attention": "window", "full_attention": "full"}, "sliding_window_pattern", 6),
        scaled_embed=True,
    ),
}
