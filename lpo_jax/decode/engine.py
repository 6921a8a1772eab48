"""What runs on the devices: prefill, placing a prompt in a row, and the jitted loop that extends all rows.

A row is its tokens and its caches. The caches hold what stands in front of the row's last token; a step feeds that token and appends what comes
next. So a prompt needs no logits, a token that was proposed but not taken is forgotten by not counting it, and what is appended is a function of
the row's tokens and of the noise at its position alone.

With two models a step is a block of k tokens: the second proposes k, each behind the one before, and the first looks at all of them in one pass.
Those in front of the first that is rejected are what k steps of one token each would have appended, and so is the token that replaces it.

Dims: R rows, S slots (tokens that a row can hold), k tokens of a block, G prompts of a prefill, T tokens of a prompt's bucket, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from lpo_jax.decode.rules.codecode import FACTS, CoDecoding
from lpo_jax.decode.rules.warp import Site, Warp, draw, logp_of, only, warp
from lpo_jax.model.decoder import KVCache, Model, Params
from lpo_jax.sharding import constrain, named

CACHE_AXES = ("layers", "batch", None, "kv_heads", "head_dim")


@flax.struct.dataclass
class Rows:
    """The rows' state."""

    caches: tuple[KVCache, ...]  # one a model
    tokens: jax.Array  # [R, S] int32: the prompt, and behind it what was generated
    length: jax.Array  # [R] int32: how many these are
    full_at: jax.Array  # [R] int32: the length at which the row ends
    keys: jax.Array  # [R, 2] uint32: see `warp.gumbel`
    warp: Warp  # [R] each
    active: jax.Array  # [R] bool: the row is to be extended
    facts: dict[str, jax.Array]  # [R, S] float32 each, of the generated tokens: "logp" (by the first model, unwarped), and co-decoding's


class Loop:
    """The jitted functions for rows of a model, or of a target and its security model, that read the same tokens.

    Args:
      rule: how two models decide; None with one model.
      vocab: tokens that can be drawn: the first so many.
      ends: tokens that end a row.
    """

    def __init__(
        self, models: Sequence[Model], mesh: Mesh, rule: CoDecoding | None, vocab: int, ends: Sequence[int], rows: int, slots: int
    ):
        assert len(models) == (1 if rule is None else 2)
        self.models, self.mesh, self.rule, self.vocab, self.ends = tuple(models), mesh, rule, vocab, tuple(ends)
        self.rows, self.slots = rows, slots
        places = self._places()
        self.empty: Any = jax.jit(self._empty, out_shardings=places)
        self.prefill: Any = jax.jit(self._prefill)
        self.place: Any = jax.jit(self._place, out_shardings=places, donate_argnums=0)
        self.extend: Any = jax.jit(self._extend, out_shardings=places, static_argnames="block", donate_argnums=1)

    def compilations(self) -> int:
        """How many programs have been compiled so far."""
        return sum(f._cache_size() for f in (self.empty, self.prefill, self.place, self.extend))

    def _empty(self) -> Rows:
        """Rows of nothing, all inactive."""
        R, S = self.rows, self.slots
        count = jnp.ones((R,), jnp.int32)
        return Rows(
            caches=tuple(model.empty_cache(R, S) for model in self.models),
            tokens=jnp.zeros((R, S), jnp.int32),
            length=count,
            full_at=count,
            keys=jnp.zeros((R, 2), jnp.uint32),
            warp=Warp(jnp.zeros((R,)), jnp.zeros((R,), jnp.int32), jnp.ones((R,))),
            active=jnp.zeros((R,), bool),
            facts={name: jnp.zeros((R, S), jnp.float32) for name in ("logp", *(FACTS if self.rule else ()))},
        )

    def _places(self) -> Rows:
        """Rows lie along the batch's axes, heads along the tensor axis."""
        shapes = jax.eval_shape(self._empty)
        by_row = jax.tree.map(lambda x: named(self.mesh, ("batch", *(None,) * (x.ndim - 1)), x.shape), replace(shapes, caches=()))
        return replace(by_row, caches=jax.tree.map(lambda x: named(self.mesh, CACHE_AXES, x.shape), shapes.caches))

    @property
    def row_sharding(self) -> NamedSharding:
        """Where an [R] array lies."""
        return named(self.mesh, ("batch",), (self.rows,))

    def _prefill(self, params: Sequence[Params], tokens: jax.Array) -> tuple[KVCache, ...]:
        """[G, T] prompts, padded on the right -> each model's keys and values of all of it."""
        caches = (model.prefill(p, tokens) for model, p in zip(self.models, params, strict=True))
        return jax.tree.map(lambda x: constrain(x, *CACHE_AXES), tuple(caches))

    def _place(
        self,
        rows: Rows,
        prefilled: tuple[KVCache, ...],
        tokens: jax.Array,
        source: jax.Array,
        slot: jax.Array,
        lengths: jax.Array,
        key: jax.Array,
        by: Warp,
    ) -> Rows:
        """Put prompt `source` of a prefill's [G, T] `tokens` into row `slot`; `lengths`: the prompt's, and that at which the row is full."""
        prompt = tokens[source]

        def put(into: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(into, jax.lax.dynamic_slice_in_dim(new, source, 1, 1), slot, 1)

        def cached(old: jax.Array, new: jax.Array) -> jax.Array:
            return old.at[:, :, : new.shape[2]].set(put(old[:, :, : new.shape[2]], new))

        return replace(
            rows,
            caches=jax.tree.map(cached, rows.caches, prefilled),
            tokens=rows.tokens.at[slot, : len(prompt)].set(prompt),
            length=rows.length.at[slot].set(lengths[0]),
            full_at=rows.full_at.at[slot].set(lengths[1]),
            keys=rows.keys.at[slot].set(key),
            warp=jax.tree.map(lambda old, new: old.at[slot].set(new), rows.warp, by),
            active=rows.active.at[slot].set(True),
        )

    def _extend(self, params: Sequence[Params], rows: Rows, steps: jax.Array, block: int) -> Rows:
        """Extend every active row by at most `steps` tokens, with two models by at most so many blocks of `block` tokens."""

        def go_on(carry: tuple[jax.Array, Rows]) -> jax.Array:
            return (carry[0] < steps) & carry[1].active.any()

        def step(carry: tuple[jax.Array, Rows]) -> tuple[jax.Array, Rows]:
            rows = carry[1]
            return carry[0] + 1, self._alone(params, rows) if self.rule is None else self._together(params, rows, block)

        return jax.lax.while_loop(go_on, step, (jnp.zeros((), jnp.int32), rows))[1]

    def _alone(self, params: Sequence[Params], rows: Rows) -> Rows:
        """One token more for each active row."""
        logits, cache = self._read(0, params, rows.caches[0], _last(rows), rows.length[:, None] - 1)
        site = Site(rows.keys, rows.length, rows.warp)
        token = draw(warp(logits[:, 0], rows.warp), site)
        return self._append(rows, (cache,), token[:, None], jnp.ones_like(rows.length), {"logp": logp_of(logits[:, 0], token)[:, None]})

    def _together(self, params: Sequence[Params], rows: Rows, block: int) -> Rows:
        """Up to `block` tokens more for each active row, those of `block` = 1."""
        assert self.rule is not None
        rule, site, k = self.rule, Site(rows.keys, rows.length, rows.warp), block

        def propose(carry: tuple[jax.Array, KVCache], ahead: jax.Array) -> tuple[tuple[jax.Array, KVCache], tuple[jax.Array, ...]]:
            token, cache = carry
            logits, cache = self._read(1, params, cache, token, rows.length[:, None] - 1 + ahead)
            draft, *logq = rule.propose(logits[:, 0], site.ahead(ahead))
            return (draft[:, None], cache), (draft, *logq)

        last = _last(rows)
        (_, expert_cache), proposed = jax.lax.scan(propose, (last, rows.caches[1]), jnp.arange(k))
        drafts, logq_ratio, logq = (x.T for x in proposed)  # [R, k] each
        fed = jnp.concatenate([last, drafts[:, :-1]], axis=1)
        logits, target_cache = self._read(0, params, rows.caches[0], fed, rows.length[:, None] - 1 + jnp.arange(k))
        logp = logp_of(logits, drafts)
        accepted = rule.accepts(logp, logq_ratio)
        taken = jnp.where(accepted.all(axis=1), k, jnp.argmin(accepted, axis=1))  # drafts in front of the first rejected
        stop = jnp.minimum(taken, k - 1)
        there = jnp.take_along_axis(logits, stop[:, None, None], axis=1)[:, 0]
        instead = jax.lax.cond(accepted.all(), lambda: drafts[:, 0], lambda: rule.instead(there, site.ahead(stop)))
        replaced = jnp.arange(k) == taken[:, None]
        facts = {
            "logp": jnp.where(replaced, logp_of(there, instead)[:, None], logp),
            "draft": drafts,
            "accepted": accepted,
            "p": jnp.exp(logp),
            "q": jnp.exp(logq),
        }
        new = jnp.where(replaced, instead[:, None], drafts)
        return self._append(rows, (target_cache, expert_cache), new, stop + 1, facts)

    def _read(
        self, which: int, params: Sequence[Params], cache: KVCache, tokens: jax.Array, positions: jax.Array
    ) -> tuple[jax.Array, KVCache]:
        """What a model expects behind each of `tokens` [R, k]: logits [R, k, V] in float32 or wider, -inf where no token is; and its cache."""
        model = self.models[which]
        hidden, cache = model.decode(params[which], cache, tokens, positions)
        found = model.unembed(params[which], hidden)
        return constrain(only(found.astype(jnp.promote_types(found.dtype, jnp.float32)), self.vocab), "batch", None, "vocab"), cache

    def _append(self, rows: Rows, caches: tuple[KVCache, ...], new: jax.Array, count: jax.Array, facts: dict[str, jax.Array]) -> Rows:
        """The active rows with the first `count` [R] of their `new` [R, k] tokens, or those up to the end. The others have computed too, and
        change nothing that counts."""
        ahead = jnp.arange(new.shape[1])
        ended = jnp.isin(new, jnp.array(self.ends, jnp.int32)) | (rows.length[:, None] + ahead + 1 >= rows.full_at[:, None])
        count = jnp.where(ended.any(axis=1), jnp.minimum(count, jnp.argmax(ended, axis=1) + 1), count)
        appended = rows.active[:, None] & (ahead < count[:, None])
        where = jnp.where(appended, rows.length[:, None] + ahead, self.slots)  # out of bounds: dropped
        everyone = jnp.arange(self.rows)[:, None]
        return replace(
            rows,
            caches=caches,
            tokens=rows.tokens.at[everyone, where].set(new, mode="drop"),
            length=rows.length + appended.sum(axis=1, dtype=jnp.int32),
            active=rows.active & ~(ended & appended).any(axis=1),
            facts={name: x.at[everyone, where].set(facts[name].astype(x.dtype), mode="drop") for name, x in rows.facts.items()},
        )


def _last(rows: Rows) -> jax.Array:
    """Each row's last token, [R, 1]."""
    return jnp.take_along_axis(rows.tokens, rows.length[:, None] - 1, axis=1)
