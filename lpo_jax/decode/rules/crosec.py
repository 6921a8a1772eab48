"""CroSec: co-decoding of a target model and an expert that have different tokenizers.

At every token the target's distribution is mixed with the expert's, carried over to the target's vocabulary (`vocab_map`). The published rule
moves the expert on by the token that the map gives for the chosen one, so what it reads drifts away from the text, and it takes every token that
the map lacks from the target. Here the expert reads the text so far in its *own* tokens: the text's end is tokenised anew after every token, and
the expert's cache rolled back to where old and new tokens part; and what the expert has no word for keeps the target's probability.
`published=True` does as published.

While the text ends within a character, the target decides alone: the expert can't read it. Where it ends within a word, the expert reads the
part as its tokenizer writes that part alone, as any model does whose prompt ends there.

Dims: R rows, V the target's vocabulary, E the expert's.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lpo_jax.config import ConfigError
from lpo_jax.decode.rules.vocab_map import Alignment

_TINY = 1e-20  # what the expert gives every token at least, as published


@dataclass(frozen=True)
class CroSec:
    """The parts of the rule. The default is the preset `crosec`."""

    weight: float = 0.3  # the expert's in the mixture
    published: bool = False  # as published: see the module

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ConfigError(f"co-decoding: weight must lie in 0 .. 1, not {self.weight!r}")


PRESETS = {"crosec": CroSec(), "crosec_published": CroSec(published=True)}


def mix(t: jax.Array, s: jax.Array, alignment: Alignment, weight: jax.Array, published: bool = False) -> tuple[jax.Array, jax.Array]:
    """The distribution to draw from, and the expert's as the target's tokens: [R, V] each.

    With m the expert's probabilities carried over: (1 - w) t + w m, normalised, among the tokens that some token of the expert speaks for,
    which together keep the mass that t gives them; each other token keeps what t gives it. Published: among all that `nearest` knows; the
    others get nothing.

    Args:
      t, s: target's and expert's probabilities, [R, V] and [R, E].
      weight: w, [R]. At 0 the result is t; published: t without what `nearest` lacks.
    """
    w, V, E = weight[:, None], t.shape[-1], len(alignment.votes_for)
    votes_for = np.where(alignment.votes_for < 0, V, alignment.votes_for)  # out of bounds: dropped
    m = jnp.zeros_like(t).at[:, votes_for].add(s[:, :E] * alignment.strength, mode="drop")
    known = alignment.nearest >= 0 if published else alignment.heard
    mixed = jnp.zeros(V, bool).at[: len(known)].set(known)
    e = jnp.where(mixed, (1 - w) * t + w * jnp.maximum(m, _TINY), 0)
    e /= e.sum(-1, keepdims=True)
    return (e if published else jnp.where(mixed, e * jnp.where(mixed, t, 0).sum(-1, keepdims=True), t)), m
