"""What runs on the devices: reading prompts, beginning a row with one, and the jitted loop that extends all rows.

A row is one sequence at work. It has room for S tokens. The keys and values of these lie on pages of each model's cache, the same pages for all
models; `lpo_jax.decode.tables` says which. A step reads the row's last token and appends the next one. For example, behind the prompt "a b c" the
first step reads "c" and appends "d"; the next reads "d".

Three things follow:
- A prefill computes keys and values only. The first token's logits come from a step, as every token's do.
- A proposed token that is rejected needs no clean-up. The row's length doesn't count it, and its slot is written again before it is read.
- What is appended depends on the row's own tokens and on the noise at its position. It doesn't depend on the other rows.

With two models a step is a block of k tokens. The second model proposes k tokens one after the other; the first reads all of them in one pass. Kept
are those in front of the first rejected one, and the token that replaces it. That is the text that k steps of one token each would have written.

Dims: R rows, S tokens of a row, M pages of a row at most, k tokens of a block, G chunks of prompts, T tokens of a chunk, V vocabulary, D parts of
the pages.
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
from lpo_jax.decode.tables import Chunks, Copy
from lpo_jax.model.attention import NO_PAGE, PAGES_AXES, KVPages, copy_pages
from lpo_jax.model.decoder import Model, Params
from lpo_jax.sharding import constrain, named

Read = Callable[[int, KVPages, jax.Array, jax.Array], tuple[jax.Array, KVPages]]
"""(which model, its cache, tokens, positions) -> see `Engine._read`."""


def programs(*functions: Callable[..., object]) -> int:
    """How many programs these jitted functions have compiled."""
    return sum(function._cache_size() for function in functions)  # type: ignore[attr-defined]


@flax.struct.dataclass
class DecodeState:
    """What the devices know of all rows."""

    caches: tuple[KVPages, ...]  # one for each model
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

    `empty`, `prefill`, `begin` and `extend` are the functions below of these names, compiled. What they get of a state they use up.

    Args:
      rule: how two models decide; None with one model.
      vocab: only the first so many tokens can be drawn.
      ends: tokens that end a row.
      rows: sequences at work at once.
      longest: tokens that a row can hold.
      pages: of all parts together, of `slots` tokens each.
    """

    def __init__(
        self,
        models: Sequence[Model],
        mesh: Mesh,
        rule: CoDecoding | None,
        vocab: int,
        ends: Sequence[int],
        rows: int,
        longest: int,
        pages: int,
        slots: int,
    ):
        assert len(models) == (1 if rule is None else 2)
        self.models, self.mesh, self.rule, self.vocab, self.ends = tuple(models), mesh, rule, vocab, tuple(ends)
        self.rows, self.longest, self.pages, self.slots = rows, longest, pages, slots
        places = self._places()
        self.empty = jax.jit(self._empty, out_shardings=places)
        self.prefill = jax.jit(self._prefill, out_shardings=places.caches, donate_argnums=2)
        self.begin = jax.jit(self._begin, out_shardings=places, donate_argnums=0)
        self.extend = jax.jit(self._extend, out_shardings=places, static_argnames="block", donate_argnums=2)

    def compilations(self) -> int:
        """How many programs have been compiled so far."""
        return programs(self.empty, self.prefill, self.begin, self.extend)

    def _empty(self) -> DecodeState:
        """Rows without a text, all inactive."""
        R, S = self.rows, self.longest
        count = jnp.ones((R,), jnp.int32)
        return DecodeState(
            caches=tuple(model.empty_cache(self.pages, self.slots) for model in self.models),
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
        """The state's shardings: rows and pages lie along the batch's axes, heads along the tensor axis."""
        shapes = jax.eval_shape(self._empty)
        by_row = jax.tree.map(lambda x: named(self.mesh, ("batch", *(None,) * (x.ndim - 1)), x.shape), replace(shapes, caches=()))
        return replace(by_row, caches=jax.tree.map(lambda x: named(self.mesh, PAGES_AXES, x.shape), shapes.caches))

    def abstract_state(self) -> DecodeState:
        """The state as `jax.ShapeDtypeStruct`s: shapes, dtypes and shardings."""
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), jax.eval_shape(self._empty), self._places()
        )

    @property
    def row_sharding(self) -> NamedSharding:
        """Where an [R] array lies."""
        return named(self.mesh, ("batch",), (self.rows,))

    def _prefill(
        self, params: Sequence[Params], adapters: Params | None, caches: tuple[KVPages, ...], chunks: Chunks
    ) -> tuple[KVPages, ...]:
        """Write parts of prompts, of T tokens each, into each model's cache.

        Args:
          adapters: of the first model, see `lpo_jax.model.adapters.joined`; None: there are none.
        """
        tokens, starts, table, which = map(jnp.asarray, chunks)
        return tuple(
            model.fill(p, cache, tokens, starts, table, a, which)
            for model, p, cache, a in zip(self.models, params, caches, (adapters, None), strict=False)
        )

    def _begin(
        self,
        state: DecodeState,
        row: jax.Array,
        prompt: jax.Array,
        lengths: jax.Array,
        key: jax.Array,
        by: Warp,
        adapter: jax.Array,
        page: Copy,
    ) -> DecodeState:
        """Begin a row with a prompt that has been prefilled.

        Args:
          prompt: [S], padded.
          lengths: [2], the prompt's, and that at which the row is full.
          page: the one that the row must have for itself.
        """
        return replace(
            state,
            caches=tuple(copy_pages(cache, *map(jnp.asarray, page)) for cache in state.caches),
            tokens=state.tokens.at[row].set(prompt),
            length=state.length.at[row].set(lengths[0]),
            full_at=state.full_at.at[row].set(lengths[1]),
            keys=state.keys.at[row].set(key),
            warp=jax.tree.map(lambda old, new: old.at[row].set(new), state.warp, by),
            adapter=state.adapter.at[row].set(adapter),
            active=state.active.at[row].set(True),
        )

    def _extend(
        self, params: Sequence[Params], adapters: Params | None, state: DecodeState, table: jax.Array, steps: jax.Array, block: int
    ) -> DecodeState:
        """Extend every active row by at most `steps` tokens, with two models by at most so many blocks of `block` tokens.

        Args:
          table: [R, M], the pages of each row, also those of the tokens to come.
        """

        def go_on(carry: tuple[jax.Array, DecodeState]) -> jax.Array:
            return (carry[0] < steps) & carry[1].active.any()

        def step(carry: tuple[jax.Array, DecodeState]) -> tuple[jax.Array, DecodeState]:
            state = carry[1]
            pages = jnp.where(state.active[:, None], table, NO_PAGE)
            read = partial(self._read, params, (adapters, None), state.adapter, pages)
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

        def propose(carry: tuple[jax.Array, KVPages], ahead: jax.Array) -> tuple[tuple[jax.Array, KVPages], tuple[jax.Array, ...]]:
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
        table: jax.Array,
        which: int,
        cache: KVPages,
        tokens: jax.Array,
        positions: jax.Array,
    ) -> tuple[jax.Array, KVPages]:
        """What a model expects behind each of `tokens` [R, k]: logits [R, k, V] in float32 or wider, -inf where no token is; and its cache."""
        model, own = self.models[which], adapters[which]
        hidden, cache = model.decode(params[which], cache, tokens, positions, table, own, of_rows)
        found = model.unembed(params[which], hidden, own, of_rows)
        return constrain(only(found.astype(jnp.promote_types(found.dtype, jnp.float32)), self.vocab), "batch", None, "vocab"), cache

    def _append(
        self, state: DecodeState, caches: tuple[KVPages, ...], new: jax.Array, count: jax.Array, facts: dict[str, jax.Array]
    ) -> DecodeState:
        """Append to each active row the first `count` [R] of its `new` [R, k] tokens, or fewer, where the row ends with one of them.

        The inactive rows have been computed along, without pages. Nothing of them changes.
        """
        ahead = jnp.arange(new.shape[1])
        ended = jnp.isin(new, jnp.array(self.ends, jnp.int32)) | (state.length[:, None] + ahead + 1 >= state.full_at[:, None])
        count = jnp.where(ended.any(axis=1), jnp.minimum(count, jnp.argmax(ended, axis=1) + 1), count)
        appended = state.active[:, None] & (ahead < count[:, None])
        where = jnp.where(appended, state.length[:, None] + ahead, self.longest)  # out of bounds: dropped
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
