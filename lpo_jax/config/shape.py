"""The model's part of the schema: the shape of a decoder, in which families differ."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from foundation.errors import ConfigError
from foundation.settings import Count, Positive, PositiveNumber, Settings, Weight

LayerKind = Literal["full", "window", "no_rope"]


def check(condition: bool, message: str) -> None:
    """Raises:
    ConfigError: with the message, if the condition doesn't hold.
    """
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class RopeScaling(Settings):
    """How rotary frequencies are stretched beyond the length that a model was first trained on."""

    kind: Literal["linear", "llama3", "longrope", "yarn"]
    """linear: all frequencies alike; llama3, yarn: the slow ones only; longrope: each as `short_factors` say"""
    factor: PositiveNumber
    """by how much; longrope: the length that the model was made for / original_positions, beyond which it isn't computed"""
    low_freq_factor: PositiveNumber = 1.0
    """llama3: wavelengths above original_positions / low_freq_factor are stretched by the whole `factor`"""
    high_freq_factor: PositiveNumber = 4.0
    """llama3: wavelengths below original_positions / high_freq_factor are left alone; those in between are stretched in proportion"""
    original_positions: Positive = 8192
    """llama3, longrope, yarn: the length that the model was first trained on"""
    beta_fast: PositiveNumber = 32.0
    """yarn: dims that turn more often than this within original_positions are left alone"""
    beta_slow: PositiveNumber = 1.0
    """yarn: dims that turn less often than this are stretched by the whole `factor`; those in between in proportion to their index"""
    truncate: bool = True
    """yarn: the two bounds between dims are rounded, outwards"""
    attention_factor: PositiveNumber = 1.0
    """longrope, yarn: the rotated dims of queries and keys are multiplied by it"""
    short_factors: tuple[PositiveNumber, ...] = ()
    """longrope: by how much each pair of dims is stretched, up to original_positions"""
    long_factors: tuple[PositiveNumber, ...] = ()
    """longrope: the same for longer sequences: kept for export, not computed"""


@dataclass(frozen=True)
class ModelConfig(Settings):
    """The shape of a decoder. Families differ in these values only."""

    family: Literal[
        "codegen", "gemma3_text", "gpt_bigcode", "granite", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3",
        "starcoder2",
    ]  # fmt: skip
    """`model_type` of a Hugging Face config.json, see lpo_jax/model/families.py"""
    vocab_size: Positive
    """rows of the embedding table"""
    d_model: Positive
    """width of the residual stream"""
    n_layers: Annotated[int, Field(gt=0, le=10_000)]
    """blocks"""
    n_heads: Positive
    """query heads"""
    n_kv_heads: Positive
    """key and value heads"""
    head_dim: Positive
    """width of a head"""
    d_mlp: Positive
    """width inside an MLP"""
    max_positions: Positive
    """longest sequence the model was made for"""
    layers: tuple[LayerKind, ...] | None = None
    """each layer's kind; null: all alike. window: a token sees `window` positions; full: all of them; no_rope: all of them, and nothing is
    rotated"""
    norm: Literal["rms", "rms_plus_one", "layer"] = "rms"
    """layer: with a bias; rms_plus_one: times 1 + weight"""
    norm_eps: PositiveNumber = 1e-6
    """added to a norm's variance"""
    positions: Literal["rope", "learned"] = "rope"
    """rotary, or a table"""
    rope_theta: PositiveNumber = 10000.0
    """base of the rotary frequencies"""
    rope_dim: Positive | None = None
    """leading dims of a head that are rotated; null: all"""
    rope_interleaved: bool = False
    """rotate neighbouring dims (GPT-J), not the two halves (llama)"""
    rope_scaling: RopeScaling | None = None
    """how they are stretched; null: not at all"""
    window: Positive | None = None
    """a token sees this many positions, itself included; null: all"""
    window_rope_theta: PositiveNumber | None = None
    """rope_theta of the layers with a window, whose frequencies aren't stretched then; null: as in the others"""
    score_scale: PositiveNumber | None = None
    """attention scores are multiplied by it; null: 1 / sqrt(head_dim)"""
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    """of the MLP; gelu_tanh: gelu's usual approximation"""
    gated_mlp: bool = True
    """activate(x gate) * (x up), not activate(x up)"""
    parallel: bool = False
    """attention and MLP read one norm's output and are added to the residual together"""
    post_norms: bool = False
    """the outputs of attention and MLP are normalised too"""
    embed_scale: PositiveNumber = 1.0
    """embeddings are multiplied by it"""
    residual_scale: PositiveNumber = 1.0
    """what attention and MLP add to the residual is multiplied by it"""
    logit_divisor: PositiveNumber = 1.0
    """logits are divided by it"""
    qkv_bias: bool = False
    """of the query, key and value projections"""
    out_bias: bool = False
    """of the attention's output projection"""
    mlp_bias: bool = False
    """of the MLP's matrices"""
    head_bias: bool = False
    """of the output head"""
    qk_norm: bool = False
    """normalise every head's query and key"""
    tied_head: bool = False
    """the output head is the embedding table"""
    experts: Count = 0
    """MLPs that a router chooses from in each layer, see lpo_jax/model/moe.py; 0: there is one MLP and no router"""
    experts_per_token: Positive = 1
    """how many of them compute a token"""
    d_expert: Count = 0
    """width inside an expert; d_mlp is of no use beside it"""
    normalized_experts: bool = False
    """the weights of a token's experts add up to 1; false: those of all experts do"""
    router_aux_loss_coef: Weight = 0.0
    """kept for export, no more: that loss counts the tokens of a batch, so it would differ between a tree and its two sequences"""
    output_router_logits: bool = False
    """kept for export"""

    def __post_init__(self) -> None:
        check(
            self.n_heads % self.n_kv_heads == 0,
            f"model shape: n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})",
        )
        rotated = self.head_dim if self.rope_dim is None else self.rope_dim
        check(
            rotated % 2 == 0 and rotated <= self.head_dim,
            f"model shape: the rotated dims ({rotated}) must be even and at most head_dim ({self.head_dim})",
        )
        check(
            self.layers is None or len(self.layers) == self.n_layers,
            f"model shape: layers has {len(self.layers or ())} kinds, n_layers is {self.n_layers}",
        )
        check("window" not in self.kinds or self.window is not None, "model shape: layers: some have a window, but window is null")
        check(self.positions == "rope" or "no_rope" not in self.kinds, "model shape: learned positions leave no layer without rope")
        check(not (self.parallel and self.post_norms), "model shape: a parallel block has no post_norms")
        if (scaling := self.rope_scaling) is not None and scaling.kind == "yarn":
            check(self.rope_theta > 1, f"model shape: rope_theta ({self.rope_theta}) must be above 1 for yarn")
        if scaling is not None and scaling.kind == "longrope":
            pairs, lengths = rotated // 2, [len(scaling.short_factors), len(scaling.long_factors)]
            check(lengths == [pairs, pairs], f"model shape: short_factors and long_factors have {lengths} numbers, both must have {pairs}")
            check(
                self.max_positions <= scaling.original_positions,
                f"model shape: max_positions ({self.max_positions}) must be at most original_positions ({scaling.original_positions}): "
                "longrope isn't computed beyond it",
            )
        check(
            not self.experts or self.experts_per_token <= self.experts,
            f"model shape: experts_per_token ({self.experts_per_token}) must be at most experts ({self.experts})",
        )
        check(
            not self.experts or (self.d_expert > 0 and self.gated_mlp and not self.mlp_bias),
            "model shape: experts need d_expert, gated_mlp and no mlp_bias",
        )

    @property
    def limit(self) -> str:
        """The longest sequence, for errors."""
        if self.rope_scaling is None or self.rope_scaling.kind != "longrope":
            return f"{self.max_positions} tokens"
        return f"{self.max_positions} tokens (original_max_position_embeddings; longrope isn't computed beyond)"

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The kinds of layers that there are, each once."""
        return tuple(dict.fromkeys(self.layers or ("full" if self.window is None else "window",)))
