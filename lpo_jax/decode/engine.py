"""What runs on the devices: the prefill of prompts, placing a prompt in a row, and the jitted loop that extends all rows.

A row is one sequence at work. It has room for S tokens, and each model's cache has a slot for the keys and values of each. A step reads the row's
last token and appends the next one. For example, behind the prompt "a b c" the first step reads "c" and appends "d"; the next reads "d".

Three things follow:
- A prefill computes keys and values only. The first token's logits come from a step, as every token's do.
- A proposed token that is rejected needs no clean-up. The row's length doesn't count it, and its slot is written again before it is read.
- What is appended depends on the row's own tokens and on the noise at its position. It doesn't depend on the other rows.

With two models a step is a block of k tokens. The second model proposes k tokens one after the other; the first reads all of them in one pass. Kept
are those in front of the first rejected one, and the token that replaces it. That is the text that k steps of one token each would have written.

Dims: R rows, S slots of a row, k tokens of a block, G prompts of a prefill, T tokens that these are padded to, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from lpo_jax.decode.rules.codecode import FACTS, CoDecoding
from lpo_jax.decode.rules.warp import Site, Warp, draw, logp_of, only
from lpo_jax.model.decoder import KVCache, Model, Params
from lpo_jax.sharding import constrain, named

Read = Callable[[int, KVCache, jax.Array, jax.Array], tuple[jax.Array, KVCache]]
"""(which model, its cache, tokens, positions) -> see `Engine._read`."""

CACHE_AXES = ("layers", "batch", None, "kv_heads", "head_dim")
MIN_BUCKET = 32


def bucket(length: int, most: int) -> int:
    """The tokens that a prompt's prefill is padded to: the least power of two that holds it, at least 32, or all `most` that a row can hold."""
    return min(max(MIN_BUCKET, 1 << (length - 1).bit_length()), most)


def programs(*functions: Callable[..., object]) -> int:
    """How many programs these jitted functions have compiled."""
    return sum(function._cache_size() for function in functions)  # type: ignore[attr-defined]


@flax.struct.dataclass
class DecodeState:
    """What the devices know of all rows."""

    caches: tuple[KVCache, ...]  # one for each model
    tokens: jax.Array  # [R, S] int32: the prompt, and behind it what was generated
    length: jax.Array  # [R] int32: how many tokens these are
    full_at: jax.Array  # [R] int32: the length at which the row ends
    keys: jax.Array  # [R, 2] uint32: the row's seed and sample, see `warp.Site`
    warp: Warp  # [R] each
    adapter: jax.Array  # [R] int32: the number of the row's adapter, from 1 on; 0: none
    active: jax.Array  # [R] bool: the row is to be extended
    facts: dict[str, jax.Array]  # [R, S] float32 each, of the generated tokens: "logp" (by the first model, unwarped), and co-decoding's


class Engine:
    """The jitted functions for one model, or for a target and its security model that read the same tokens.

    `empty`, `prefill`, `place` and `extend` are the functions below of these names, compiled.

    Args:
      rule: how two models decide; None with one model.
      vocab: only the first so many tokens can be drawn.
      ends: tokens that end a row.
      rows: sequences at work at once.
      slots: tokens that a row can hold.
    """

    def __init__(
        self, models: Sequence[Model], mesh: Mesh, rule: CoDecoding | None, vocab: int, ends: Sequence[int], rows: int, slots: int
    ):
        assert len(models) == (1 if rule is None else 2)
        self.models, self.mesh, self.rule, self.vocab, self.ends = tuple(models), mesh, rule, vocab, tuple(ends)
        self.rows, self.slots = rows, slots
        places = self._places()
        self.empty = jax.jit(self._empty, out_shardings=places)
        self.prefill = jax.jit(self._prefill)
        self.place = jax.jit(self._place, out_shardings=places, donate_argnums=0)
        self.extend = jax.jit(self._extend, out_shardings=places, static_argnames="block", donate_argnums=2)

    def compilations(self) -> int:
        """How many programs have been compiled so far."""
        return programs(self.empty, self.prefill, self.place, self.extend)

    def _empty(self) -> DecodeState:
        """Rows without a text, all inactive."""
        R, S = self.rows, self.slots
        count = jnp.ones((R,), jnp.int32)
        return DecodeState(
            caches=tuple(model.empty_cache(R, S) for model in self.models),
            tokens=jnp.zeros((R, S), jnp.int32),
            length=count,
            full_at=count,
            keys=jnp.zeros((R, 2), jnp.uint32),
            warp=Warp(jnp.zeros((R,)), jnp.zeros((R,), jnp.int32), jnp.ones((R,))),
            adapter=jnp.zeros((R,), jnp.int32),
            active=jnp.zeros((R,), bool),
            facts={name: jnp.zeros((R, S), jnp.float32) for name in ("logp", *(FACTS if self.rule else ()))},
        )

    def _places(self) -> DecodeState:
        """The state's shardings: rows lie along the batch's axes, heads along the tensor axis."""
        shapes = jax.eval_shape(self._empty)
        by_row = jax.tree.map(lambda x: named(self.mesh, ("batch", *(None,) * (x.ndim - 1)), x.shape), replace(shapes, caches=()))
        return replace(by_row, caches=jax.tree.map(lambda x: named(self.mesh, CACHE_AXES, x.shape), shapes.caches))

    @property
    def row_sharding(self) -> NamedSharding:
        """Where an [R] array lies."""
        return named(self.mesh, ("batch",), (self.rows,))

    def _prefill(self, params: Sequence[Params], adapters: Params | None, tokens: jax.Array, which: jax.Array) -> tuple[KVCache, ...]:
        """[G, T] prompts, padded on the right -> each model's keys and values of all of their tokens.

        Args:
          adapters: of the first model, see `lpo_jax.model.adapters.joined`; None: there are none.
          which: [G], the number of each prompt's.
        """
        caches = (model.prefill(p, tokens, a, which) for model, p, a in zip(self.models, params, (adapters, None), strict=False))
        return jax.tree.map(lambda x: constrain(x, *CACHE_AXES), tuple(caches))

    def _place(
        self,
        state: DecodeState,
        prefilled: tuple[KVCache, ...],
        tokens: jax.Array,
        source: jax.Array,
        row: jax.Array,
        lengths: jax.Array,
        key: jax.Array,
        by: Warp,
        adapter: jax.Array,
    ) -> DecodeState:
        """Begin a row with a prompt that has been prefilled.

        Args:
          tokens: [G, T], what was prefilled.
          source: which of the G prompts it is.
          lengths: [2], the prompt's, and that at which the row is full.
        """
        prompt = tokens[source]

        def put(into: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(into, jax.lax.dynamic_slice_in_dim(new, source, 1, 1), row, 1)

        def cached(old: jax.Array, new: jax.Array) -> jax.Array:
            return old.at[:, :, : new.shape[2]].set(put(old[:, :, : new.shape[2]], new))

        return replace(
            state,
            caches=jax.tree.map(cached, state.caches, prefilled),
            tokens=state.tokens.at[row, : len(prompt)].set(prompt),
            length=state.length.at[row].set(lengths[0]),
            full_at=state.full_at.at[row].set(lengths[1]),
            keys=state.keys.at[row].set(key),
            warp=jax.tree.map(lambda old, new: old.at[row].set(new), state.warp, by),
            adapter=state.adapter.at[row].set(adapter),
            active=state.active.at[row].set(True),
        )

    def _extend(self, params: Sequence[Params], adapters: Params | None, state: DecodeState, steps: jax.Array, block: int) -> DecodeState:
        """Extend every active row by at most `steps` tokens, with two models by at most so many blocks of `block` tokens."""

        def go_on(carry: tuple[jax.Array, DecodeState]) -> jax.Array:
            return (carry[0] < steps) & carry[1].active.any()

        def step(carry: tuple[jax.Array, DecodeState]) -> tuple[jax.Array, DecodeState]:
            state = carry[1]
            read = partial(self._read, params, (adapters, None), state.adapter)
            return carry[0] + 1, self._alone(read, state) if self.rule is None else self._together(read, state, block)

        return jax.lax.while_loop(go_on, step, (jnp.zeros((), jnp.int32), state))[1]

    def _alone(self, read: Read, state: DecodeState) -> DecodeState:
        """One token more for each active row."""
        logits, cache = read(0, state.caches[0], _last(state), state.length[:, None] - 1)
        site = Site(state.keys, state.length, state.warp)
        token = draw(logits[:, 0], site)
        return self._append(state, (cache,), token[:, None], jnp.ones_like(state.length), {"logp": logp_of(logits[:, 0], token)[:, None]})

    def _together(self, read: Read, state: DecodeState, block: int) -> DecodeState:
        """Up to `block` tokens more for each active row: the ones that blocks of a single token would append."""
        assert self.rule is not None
        rule, site, k = self.rule, Site(state.keys, state.length, state.warp), block

        def propose(carry: tuple[jax.Array, KVCache], ahead: jax.Array) -> tuple[tuple[jax.Array, KVCache], tuple[jax.Array, ...]]:
            token, cache = carry
            logits, cache = read(1, cache, token, state.length[:, None] - 1 + ahead)
            draft, *logq = rule.propose(logits[:, 0], site.ahead(ahead))
            return (draft[:, None], cache), (draft, *logq)

        last = _last(state)
        (_, expert_cache), proposed = jax.lax.scan(propose, (last, state.caches[1]), jnp.arange(k))
        drafts, logq_ratio, logq = (x.T for x in proposed)  # [R, k] each
        fed = jnp.concatenate([last, drafts[:, :-1]], axis=1)
        logits, target_cache = read(0, state.caches[0], fed, state.length[:, None] - 1 + jnp.arange(k))
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
        return self._append(state, (target_cache, expert_cache), new, stop + 1, facts)

    def _read(
        self,
        params: Sequence[Params],
        adapters: Sequence[Params | None],
        of_rows: jax.Array,
        which: int,
        cache: KVCache,
        tokens: jax.Array,
        positions: jax.Array,
    ) -> tuple[jax.Array, KVCache]:
        """What a model expects behind each of `tokens` [R, k]: logits [R, k, V] in float32 or wider, -inf where no token is; and its cache."""
        model, own = self.models[which], adapters[which]
        hidden, cache = model.decode(params[which], cache, tokens, positions, own, of_rows)
        found = model.unembed(params[which], hidden, own, of_rows)
        return constrain(only(found.astype(jnp.promote_types(found.dtype, jnp.float32)), self.vocab), "batch", None, "vocab"), cache

    def _append(
        self, state: DecodeState, caches: tuple[KVCache, ...], new: jax.Array, count: jax.Array, facts: dict[str, jax.Array]
    ) -> DecodeState:
        """Append to each active row the first `count` [R] of its `new` [R, k] tokens, or fewer, where the row ends with one of them.

        The inactive rows have been computed along. Of them only the caches change, in slots that no length counts.
        """
        ahead = jnp.arange(new.shape[1])
        ended = jnp.isin(new, jnp.array(self.ends, jnp.int32)) | (state.length[:, None] + ahead + 1 >= state.full_at[:, None])
        count = jnp.where(ended.any(axis=1), jnp.minimum(count, jnp.argmax(ended, axis=1) + 1), count)
        appended = state.active[:, None] & (ahead < count[:, None])
        where = jnp.where(appended, state.length[:, None] + ahead, self.slots)  # out of bounds: dropped
        everyone = jnp.arange(self.rows)[:, None]
        return replace(
            state,
            caches=caches,
            tokens=state.tokens.at[everyone, where].set(new, mode="drop"),
            length=state.length + appended.sum(axis=1, dtype=jnp.int32),
            active=state.active & ~(ended & appended).any(axis=1),
            facts={name: x.at[everyone, where].set(facts[name].astype(x.dtype), mode="drop") for name, x in state.facts.items()},
        )


def _last(state: DecodeState) -> jax.Array:
    """Each row's last token, [R, 1]."""
    return jnp.take_along_axis(state.tokens, state.length[:, None] - 1, axis=1)
