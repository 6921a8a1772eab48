"""The decoder: one transformer for every family, driven by `ModelConfig`.

Flax NNX declares the parameters; outside of this file a model is `Model` (static facts) and `params` (a nested dict of arrays),
under plain `jax.jit`, `jax.grad` and `jax.lax.scan`. Layers are stacked along a leading axis and scanned.

Dims: B batch, T tokens, D model, N heads, K kv heads, G = N / K, H head dim, F mlp, V vocabulary, L layers.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lpo_jax.config import ModelConfig
from lpo_jax.model.attention import attend
from lpo_jax.sharding import constrain

Params = dict[str, Any]
"""Nested dict of arrays."""


class Block(nnx.Module):
    """Attention and MLP with pre-normalisation. Holds all L layers' parameters; inside the scan, one layer's."""

    def __init__(self, c: ModelConfig, rngs: nnx.Rngs):
        L, D, N, K, H, F = c.n_layers, c.d_model, c.n_heads, c.n_kv_heads, c.head_dim, c.d_mlp
        into_residual = 0.02 / (2 * L) ** 0.5
        self.c = nnx.static(c)
        self.attn_norm = _ones((L, D), ("layers", None))
        self.q = _normal(rngs, (L, D, N, H), ("layers", "embed", "heads", "head_dim"))
        self.k = _normal(rngs, (L, D, K, H), ("layers", "embed", "kv_heads", "head_dim"))
        self.v = _normal(rngs, (L, D, K, H), ("layers", "embed", "kv_heads", "head_dim"))
        self.o = _normal(rngs, (L, N, H, D), ("layers", "heads", "head_dim", "embed"), into_residual)
        if c.qkv_bias:
            self.q_bias = _zeros((L, N, H), ("layers", "heads", "head_dim"))
            self.k_bias = _zeros((L, K, H), ("layers", "kv_heads", "head_dim"))
            self.v_bias = _zeros((L, K, H), ("layers", "kv_heads", "head_dim"))
        self.mlp_norm = _ones((L, D), ("layers", None))
        self.gate = _normal(rngs, (L, D, F), ("layers", "embed", "mlp"))
        self.up = _normal(rngs, (L, D, F), ("layers", "embed", "mlp"))
        self.down = _normal(rngs, (L, F, D), ("layers", "mlp", "embed"), into_residual)

    def __call__(self, x: jax.Array, rope: tuple[jax.Array, jax.Array], subtree_end: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D] for one layer."""
        c, dtype = self.c, x.dtype
        h = _rms_norm(x, self.attn_norm[...], c.norm_eps)
        q = jnp.einsum("BTD,DNH->BTNH", h, self.q[...].astype(dtype))
        k = jnp.einsum("BTD,DKH->BTKH", h, self.k[...].astype(dtype))
        v = jnp.einsum("BTD,DKH->BTKH", h, self.v[...].astype(dtype))
        if c.qkv_bias:
            q, k, v = (y + b[...].astype(dtype) for y, b in ((q, self.q_bias), (k, self.k_bias), (v, self.v_bias)))
        q, k = _rotate(q, rope), _rotate(k, rope)
        q = q.reshape(*q.shape[:2], c.n_kv_heads, c.n_heads // c.n_kv_heads, c.head_dim)
        a = attend(q, k, v, subtree_end).reshape(*q.shape[:2], c.n_heads, c.head_dim)
        x = constrain(x + jnp.einsum("BTNH,NHD->BTD", a, self.o[...].astype(dtype)), "batch", None, None)
        h = _rms_norm(x, self.mlp_norm[...], c.norm_eps)
        gate = jax.nn.silu(jnp.einsum("BTD,DF->BTF", h, self.gate[...].astype(dtype)))
        up = jnp.einsum("BTD,DF->BTF", h, self.up[...].astype(dtype))
        return constrain(x + jnp.einsum("BTF,FD->BTD", gate * up, self.down[...].astype(dtype)), "batch", None, None)


class Decoder(nnx.Module):
    """Embedding, L blocks, final norm and output head."""

    def __init__(self, c: ModelConfig, rngs: nnx.Rngs):
        self.c = nnx.static(c)
        self.embed = _normal(rngs, (c.vocab_size, c.d_model), ("vocab", "embed"))
        self.blocks = Block(c, rngs)
        self.final_norm = _ones((c.d_model,), (None,))
        if not c.tied_head:
            self.head = _normal(rngs, (c.d_model, c.vocab_size), ("embed", "vocab"))

    def hidden(self, tokens: jax.Array, positions: jax.Array, subtree_end: jax.Array, dtype: Any, remat: str) -> jax.Array:
        """[B, T] ids, positions and subtree ends -> [B, T, D] normalised hidden states."""
        # The table's rows are gathered whole: looking up a table cut along `embed` makes XLA replicate the activations.
        table = constrain(self.embed[...].astype(dtype), "vocab", None)
        x = constrain(table[tokens], "batch", None, None)
        rope = _rope(positions, self.c.head_dim, self.c.rope_theta, jnp.promote_types(dtype, jnp.float32))

        def layer(x: jax.Array, block: Block) -> tuple[jax.Array, None]:
            return block(x, rope, subtree_end), None

        x, _ = jax.lax.scan(jax.checkpoint(layer) if remat == "block" else layer, x, self.blocks)
        return _rms_norm(x, self.final_norm[...], self.c.norm_eps)

    def head_matrix(self) -> jax.Array:
        """[D, V]."""
        return self.embed[...].T if self.c.tied_head else self.head[...]


@dataclass(frozen=True)
class Model:
    """Everything static about a model; its parameters travel beside it."""

    config: ModelConfig
    compute_dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"

    @cached_property
    def _abstract(self) -> tuple[Any, nnx.State]:
        return nnx.split(nnx.eval_shape(lambda: Decoder(self.config, nnx.Rngs(0))))

    def init(self, key: jax.Array) -> Params:
        """Random parameters."""
        _, state = nnx.split(Decoder(self.config, nnx.Rngs(key)))
        return jax.tree.map(lambda x: x.astype(self.param_dtype), nnx.to_pure_dict(state))

    def shapes(self) -> Params:
        """The parameters as `jax.ShapeDtypeStruct`s."""
        pure = nnx.to_pure_dict(self._abstract[1])
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(self.param_dtype)), pure)

    def axes(self) -> Params:
        """For each parameter, the names of its dimensions (see `lpo_jax.sharding.RULES`)."""
        leaves, tree = jax.tree.flatten(self._abstract[1], is_leaf=lambda x: isinstance(x, nnx.Variable))
        return nnx.to_pure_dict(jax.tree.unflatten(tree, [leaf.get_metadata("axes") for leaf in leaves]))

    def hidden(self, params: Params, tokens: jax.Array, positions: jax.Array, subtree_end: jax.Array) -> jax.Array:
        """[B, T] int32 each -> final hidden states [B, T, D] in the compute dtype."""
        return self._bind(params).hidden(tokens, positions, subtree_end, jnp.dtype(self.compute_dtype), self.remat)

    def head(self, params: Params) -> jax.Array:
        """The output matrix [D, V] in the compute dtype."""
        return self._bind(params).head_matrix().astype(self.compute_dtype)

    def logits(self, params: Params, tokens: jax.Array) -> jax.Array:
        """[B, T] ids of plain sequences -> [B, T, V] logits. For tests and inspection: training never builds them."""
        B, T = tokens.shape
        positions = jnp.broadcast_to(jnp.arange(T), (B, T))
        hidden = self.hidden(params, tokens, positions, jnp.full((B, T), T))
        return jnp.einsum("BTD,DV->BTV", hidden, self.head(params))

    def _bind(self, params: Params) -> Decoder:
        return nnx.merge(self._abstract[0], nnx.State(params))


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], std: float = 0.02) -> nnx.Param:
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32), axes=axes)


def _ones(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
    return nnx.Param(jnp.ones(shape, jnp.float32), axes=axes)


def _zeros(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape, jnp.float32), axes=axes)


def _rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (normed * scale.astype(wide.dtype)).astype(x.dtype)


def _rope(positions: jax.Array, head_dim: int, theta: float, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of every position's angles, [B, T, H / 2] each."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=dtype) / head_dim)
    angle = positions[..., None].astype(dtype) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def _rotate(x: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary positions (Su et al. 2021) in the half-split layout of Hugging Face llama; x is [B, T, heads, H]."""
    cos, sin = (r[:, :, None, :] for r in rope)
    low, high = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x.dtype)
