"""What is kept of a layer for its backward pass; all else is computed again."""

from lpo_jax.config import ModelConfig

KEPT: dict[str, tuple[str, ...]] = {
    "block": ("chosen",),
    "attention": ("attention", "chosen"),
    "dots": ("attention", "q", "k", "v", "o", "gate", "up", "down", "expert_gate", "expert_up", "low_rank", "chosen"),
}
"""By remat policy, what a layer keeps for the backward pass beside its input: the outputs of these matrices, and of attention. The adapters'
inner products (low_rank) and the numbers of a token's experts (chosen) are few."""


def kept_width(c: ModelConfig, remat: str, tensor: int = 1, expert: int = 1) -> int:
    """How many numbers a layer keeps of each token, on a device that holds one `tensor`-th of the heads and of the mlp, and one `expert`-th of
    the experts.

    With policy "none" it keeps at least so many.
    """
    heads, kv_heads, mlp = c.n_heads * c.head_dim // tensor, c.n_kv_heads * c.head_dim // tensor, c.d_mlp // tensor
    widths = {"attention": heads, "q": heads, "k": kv_heads, "v": kv_heads, "o": c.d_model}
    if c.experts:  # what a device's own experts make of others' tokens is computed again under every policy
        chosen, inside = c.experts_per_token, c.experts_per_token * c.d_expert // tensor if expert == 1 else 0
        widths |= {"chosen": chosen, "expert_gate": inside, "expert_up": inside}
    else:
        widths |= {"gate": mlp if c.gated_mlp else 0, "up": mlp, "down": c.d_model}
    return c.d_model + sum(widths.get(name, 0) for name in KEPT["dots" if remat == "none" else remat])
