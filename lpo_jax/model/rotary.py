"""Rotary positions (Su et al. 2021): each head's dims are turned in pairs, by angles that grow with the position.

Dims: B batch, T tokens, H head dim.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from lpo_jax.config import LayerKind, ModelConfig


def turns(c: ModelConfig, kind: LayerKind, positions: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine by which layers of a kind turn each pair of dims, [B, T, 1, rotated / 2] each."""
    if kind == "window" and c.window_rope_theta is not None:
        c = dataclasses.replace(c, rope_theta=c.window_rope_theta, rope_scaling=None)
    angle = positions[..., None, None].astype(dtype) * _frequencies(c, dtype)
    if kind == "no_rope":
        return jnp.ones_like(angle), jnp.zeros_like(angle)
    factor = 1.0 if c.rope_scaling is None else c.rope_scaling.attention_factor
    return jnp.cos(angle) * factor, jnp.sin(angle) * factor


def turned(c: ModelConfig, by: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
    """[B, T, heads, H] with the first `rope_dim` dims of each head turned."""
    cos, sin = by
    rotated = 2 * cos.shape[-1]
    turning = x[..., :rotated].astype(cos.dtype)
    if c.rope_interleaved:
        a, b = turning[..., 0::2], turning[..., 1::2]
        new = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turning.shape)
    else:
        a, b = jnp.split(turning, 2, axis=-1)
        new = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([new.astype(x.dtype), x[..., rotated:]], axis=-1)


def _frequencies(c: ModelConfig, dtype: jnp.dtype) -> jax.Array:
    """By how much each pair of rotated dims turns from one position to the next, in radians: [rotated / 2]."""
    rotated = c.head_dim if c.rope_dim is None else c.rope_dim
    frequency = c.rope_theta ** (-jnp.arange(0, rotated, 2, dtype=dtype) / rotated)
    s = c.rope_scaling
    if s is None:
        return frequency
    if s.kind == "linear":
        return frequency / s.factor
    if s.kind == "longrope":
        return frequency / jnp.array(s.short_factors, dtype)
    if s.kind == "llama3":
        whole = s.original_positions * frequency / (2 * math.pi)  # whole turns within the original length
        kept = jnp.clip((whole - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0, 1)
    else:  # YaRN (Peng et al. 2023): between the pair that makes `beta_fast` turns and the one that makes `beta_slow`
        lengths = (s.original_positions / (2 * math.pi * beta) for beta in (s.beta_fast, s.beta_slow))
        first, last = (rotated * math.log(length) / (2 * math.log(c.rope_theta)) for length in lengths)
        if s.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, rotated - 1)
        kept = 1 - jnp.clip((jnp.arange(rotated // 2, dtype=dtype) - first) / (last - first or 0.001), 0, 1)
    return frequency * (kept + (1 - kept) / s.factor)
