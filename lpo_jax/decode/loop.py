"""What runs on the devices: prefill, placing a prompt in a row, and the jitted loop that extends all rows by a token at a time.

A row is its tokens and its caches. The caches hold what stands in front of the row's last token; a step feeds that token and appends the next.
So a prompt needs no logits, a token that was proposed but not taken was never in a cache, and a step is a function of the row's tokens and of the
noise at its position alone.

Dims: R rows, S slots (tokens that a row can hold), G prompts of a prefill, T tokens of a prompt's bucket, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from lpo_jax.model.decoder import KVCache, Model, Params
from lpo_jax.sharding import constrain, named

Choose = Callable[[Sequence[jax.Array], jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
"""(logits [R, V] of each model, keys [R, 2], positions [R] of the new tokens) -> (the tokens [R], facts about them to keep, [R] float32 each)."""

_CACHE_AXES = ("layers", "batch", None, "kv_heads", "head_dim")


@flax.struct.dataclass
class Rows:
    """The rows' state."""

    caches: tuple[KVCache, ...]  # one a model
    tokens: jax.Array  # [R, S] int32: the prompt, and behind it what was generated
    length: jax.Array  # [R] int32: how many these are
    full_at: jax.Array  # [R] int32: the length at which the row ends
    keys: jax.Array  # [R, 2] uint32: see `warp.gumbel`
    active: jax.Array  # [R] bool: the row is to be extended
    facts: dict[str, jax.Array]  # [R, S] float32 each: what `Choose` said of each generated token


class Loop:
    """The jitted functions for rows of one or several models that read the same tokens.

    Args:
      facts: the names of what `choose` keeps.
      ends: tokens that end a row.
    """

    def __init__(
        self, models: Sequence[Model], mesh: Mesh, choose: Choose, facts: Sequence[str], ends: Sequence[int], rows: int, slots: int
    ):
        self.models, self.mesh, self.choose, self.facts, self.ends = tuple(models), mesh, choose, tuple(facts), tuple(ends)
        self.rows, self.slots = rows, slots
        places = self._places()
        self.empty: Any = jax.jit(self._empty, out_shardings=places)
        self.prefill: Any = jax.jit(self._prefill)
        self.place: Any = jax.jit(self._place, out_shardings=places, donate_argnums=0)
        self.extend: Any = jax.jit(self._extend, out_shardings=places, donate_argnums=1)

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
            active=jnp.zeros((R,), bool),
            facts={name: jnp.zeros((R, S), jnp.float32) for name in self.facts},
        )

    def _places(self) -> Rows:
        """Rows lie along the batch's axes, heads along the tensor axis."""
        shapes = jax.eval_shape(self._empty)
        by_row = jax.tree.map(lambda x: named(self.mesh, ("batch", *(None,) * (x.ndim - 1)), x.shape), replace(shapes, caches=()))
        return replace(by_row, caches=jax.tree.map(lambda x: named(self.mesh, _CACHE_AXES, x.shape), shapes.caches))

    @property
    def row_sharding(self) -> NamedSharding:
        """Where an [R] array lies."""
        return named(self.mesh, ("batch",), (self.rows,))

    def _prefill(self, params: Sequence[Params], tokens: jax.Array) -> tuple[KVCache, ...]:
        """[G, T] prompts, padded on the right -> each model's keys and values of all of it."""
        caches = (model.prefill(p, tokens) for model, p in zip(self.models, params, strict=True))
        return jax.tree.map(lambda x: constrain(x, *_CACHE_AXES), tuple(caches))

    def _place(
        self,
        rows: Rows,
        prefilled: tuple[KVCache, ...],
        tokens: jax.Array,
        source: jax.Array,
        slot: jax.Array,
        lengths: jax.Array,
        key: jax.Array,
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
            active=rows.active.at[slot].set(True),
        )

    def _extend(self, params: Sequence[Params], rows: Rows, steps: jax.Array) -> Rows:
        """Extend every active row by at most `steps` tokens."""

        def go_on(carry: tuple[jax.Array, Rows]) -> jax.Array:
            return (carry[0] < steps) & carry[1].active.any()

        def step(carry: tuple[jax.Array, Rows]) -> tuple[jax.Array, Rows]:
            return carry[0] + 1, self._step(params, carry[1])

        return jax.lax.while_loop(go_on, step, (jnp.zeros((), jnp.int32), rows))[1]

    def _step(self, params: Sequence[Params], rows: Rows) -> Rows:
        """One token more for each active row. The others compute too, and change nothing that counts."""
        at = rows.length - 1
        last = jnp.take_along_axis(rows.tokens, at[:, None], axis=1)
        logits, caches = [], []
        for model, p, cache in zip(self.models, params, rows.caches, strict=True):
            hidden, cache = model.decode(p, cache, last, at[:, None])
            found = model.unembed(p, hidden)[:, 0]
            logits.append(constrain(found.astype(jnp.promote_types(found.dtype, jnp.float32)), "batch", "vocab"))
            caches.append(cache)
        new, facts = self.choose(logits, rows.keys, rows.length)
        everyone = jnp.arange(self.rows)
        where = jnp.where(rows.active, rows.length, self.slots)  # out of bounds: dropped
        length = rows.length + rows.active
        ended = jnp.isin(new, jnp.array(self.ends, jnp.int32)) | (length >= rows.full_at)
        return replace(
            rows,
            caches=tuple(caches),
            tokens=rows.tokens.at[everyone, where].set(new, mode="drop"),
            length=length,
            active=rows.active & ~ended,
            facts={name: x.at[everyone, where].set(facts[name].astype(x.dtype), mode="drop") for name, x in rows.facts.items()},
        )
