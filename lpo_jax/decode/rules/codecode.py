"""Co-decoding: a small security model proposes each token, the big target model keeps it or draws its own (CoSec, ISSTA 2024; CoSec+, TSE 2025).

With p the target's and q the security model's distribution behind the same tokens, d the warped q that the draft x is drawn from, and a
threshold tau:

    x ~ d        keep x if tau < min(1, p(x) / q(x)), else draw from the fallback, p or warped p

tau is a number, not a draw, and no residual is drawn from, so this is not speculative sampling: the text follows neither p nor q. With A the
tokens whose ratio exceeds tau,

    P(x) = d(x) [x in A] + (1 - d(A)) fallback(x).

tau >= 1 leaves the fallback alone. tau = 0 leaves d, wherever p has no zero. A security model that is sure of a token (q near 1) has it accepted
wherever p(x) > tau: that is the method.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from lpo_jax.config import ConfigError
from lpo_jax.decode.rules.warp import Site, Warp, draw, logp_of, warp

DRAFT, FALLBACK = 0, 1
"""Streams of noise."""

FACTS = ("draft", "accepted", "p", "q")
"""What is kept of each token: the token proposed, whether it was taken (1 or 0), and its probability by either model, unwarped."""


@dataclass(frozen=True)
class CoDecoding:
    """The parts of the rule. The default is the preset `aligned`."""

    threshold: float = 0.3  # tau
    draft_temperature: float | None = None  # what warps the draft's distribution; None: what the request asks for
    draft_top_k: int | None = None
    draft_top_p: float | None = None
    ratio: Literal["raw", "warped"] = "raw"  # the ratio's denominator: q, or d
    fallback: Literal["raw", "warped"] = "warped"  # drawn from p, or from p as the request warps it

    def __post_init__(self) -> None:
        for name, fine, wanted in (
            ("threshold", self.threshold >= 0, "0 or more"),
            ("draft_temperature", self.draft_temperature is None or self.draft_temperature >= 0, "0 (greedy) or more"),
            ("draft_top_k", self.draft_top_k is None or self.draft_top_k >= 0, "0 (off) or more"),
            ("draft_top_p", self.draft_top_p is None or 0 < self.draft_top_p <= 1, "above 0 and at most 1 (off)"),
        ):
            if not fine:
                raise ConfigError(f"co-decoding: {name} must be {wanted}, not {getattr(self, name)!r}")

    def propose(self, expert: jax.Array, site: Site) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The security model's logits [R, V] -> drafts [R], and their log-probabilities: in the ratio, and unwarped."""
        by = site.warp
        own = (self.draft_temperature, self.draft_top_k, self.draft_top_p)
        asked = (by.temperature, by.top_k, by.top_p)
        by = Warp(*(jnp.broadcast_to(b if a is None else a, site.positions.shape) for a, b in zip(own, asked, strict=True)))
        if self.ratio == "raw":
            drafts = draw(expert, Site(site.keys, site.positions, by), DRAFT)
            logq = logp_of(expert, drafts)
            return drafts, logq, logq
        warped = warp(expert, by)  # whose probabilities are asked for too
        drafts = draw(warped, Site(site.keys, site.positions, Warp()), DRAFT)
        return drafts, logp_of(warped, drafts), logp_of(expert, drafts)

    def accepts(self, logp: jax.Array, logq: jax.Array) -> jax.Array:
        """Whether a draft of these log-probabilities is kept; one whose ratio isn't a number isn't."""
        return jnp.minimum(jnp.exp(logp - logq), 1) > self.threshold

    def instead(self, target: jax.Array, site: Site) -> jax.Array:
        """The target's logits [R, V] -> the tokens [R] that replace rejected drafts."""
        by = site.warp if self.fallback == "warped" else Warp()
        return draw(target, Site(site.keys, site.positions, by), FALLBACK)


PRESETS = {
    "aligned": CoDecoding(),
    "cosec_plus": CoDecoding(draft_top_k=50, fallback="raw"),
    "cosec_v1": CoDecoding(draft_temperature=0.4, draft_top_k=0, draft_top_p=0.95, ratio="warped", fallback="raw"),
}
"""`cosec_v1`, `cosec_plus`: as published; a rejected draft is replaced by a token of the target at temperature 1, with no filter. `aligned`: it is
drawn as the request asks, so that tau >= 1 is the target's ordinary sampling and both are compared alike."""
