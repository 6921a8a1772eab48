"""A model that reads token sequences which may change at their ends, without reading again what stayed.

Dims: R rows, S slots of a row, C tokens that a call reads, T tokens that a prompt is padded to, V vocabulary.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lpo_jax.decode.engine import CACHE_AXES, bucket, programs
from lpo_jax.decode.request import LoadedModel, check_model
from lpo_jax.decode.rules.warp import only
from lpo_jax.model.decoder import KVCache, Params
from lpo_jax.sharding import constrain, named


class Reader:
    """A model's cache, and for each row the tokens that the cache holds. Tokens that a text has lost are forgotten by not counting them.

    Args:
      name: of the model, for errors.
      vocab: tokens that it has; the logits behind them are -inf.
      slots: tokens that a row holds.
      width: tokens that a call reads.
    """

    def __init__(self, name: str, model: LoadedModel, vocab: int, rows: int, slots: int, width: int):
        check_model(model, name, vocab, rows, slots, f"{slots} tokens are asked for")
        self._model, self._params, self._mesh, self._vocab = model.model, model.params, model.mesh, vocab
        self._rows, self._slots, self._width = rows, slots, width
        self._held: list[list[int]] = [[] for _ in range(rows)]
        self._latest: tuple[list[int], KVCache | None] = [], None  # a prompt and its prefill: the next may be another sample of it
        caches = jax.tree.map(lambda x: named(self._mesh, CACHE_AXES, x.shape), jax.eval_shape(self._empty)[1])
        state = named(self._mesh, ("batch", "vocab"), (rows, model.model.config.vocab_size)), caches
        self._prefill = jax.jit(self._prefill_prompt)
        self._place = jax.jit(self._place_prompt, out_shardings=caches, donate_argnums=0)
        self._extend = jax.jit(self._read_some, out_shardings=state, donate_argnums=1)
        with jax.set_mesh(self._mesh):
            self._state: tuple[jax.Array, KVCache] = jax.jit(self._empty, out_shardings=state)()

    def begin(self, row: int, prompt: list[int]) -> None:
        """Fill a row with a prompt, whose last token is left to `read`."""
        latest, prefilled = self._latest
        with jax.set_mesh(self._mesh):
            if prefilled is None or latest != prompt:
                tokens = np.zeros((1, bucket(len(prompt), self._slots)), np.int32)
                tokens[0, : len(prompt)] = prompt
                prefilled = self._prefill(self._params, tokens)
                self._latest = list(prompt), prefilled
            logits, cache = self._state
            self._state = logits, self._place(cache, prefilled, row)
        self._held[row] = prompt[:-1]

    def read(self, wanted: Mapping[int, list[int]]) -> jax.Array:
        """What the model expects behind these rows' tokens: logits [R, V]. Only what a row doesn't hold yet is computed."""
        at = {row: self._shared(row, ids) for row, ids in wanted.items()}
        while any(at[row] < len(ids) for row, ids in wanted.items()):
            tokens, count = np.zeros((self._rows, self._width), np.int32), np.zeros(self._rows, np.int32)
            positions = np.full_like(tokens, self._slots)  # out of bounds: nothing is written
            for row, ids in wanted.items():
                some = ids[at[row] : at[row] + self._width]
                tokens[row, : len(some)] = some
                positions[row] = at[row] + np.arange(self._width)  # behind the row's end nothing is seen
                count[row] = len(some)
                at[row] += len(some)
            with jax.set_mesh(self._mesh):
                self._state = self._extend(self._params, self._state, tokens, positions, count)
        for row, ids in wanted.items():
            self._held[row] = list(ids)
        return self._state[0]

    def compilations(self) -> int:
        """How many programs have been compiled so far."""
        return programs(self._prefill, self._place, self._extend)

    def _shared(self, row: int, ids: list[int]) -> int:
        """How many of `ids` needn't be read: those held already, but not the last if others had followed it."""
        held = self._held[row]
        if held == ids:
            return len(ids)
        same = next((i for i, (a, b) in enumerate(zip(held, ids, strict=False)) if a != b), min(len(held), len(ids)))
        return min(same, len(ids) - 1)

    def _empty(self) -> tuple[jax.Array, KVCache]:
        wide = jnp.promote_types(self._model.compute_dtype, jnp.float32)
        return jnp.zeros((self._rows, self._model.config.vocab_size), wide), self._model.empty_cache(self._rows, self._slots)

    def _prefill_prompt(self, params: Params, tokens: jax.Array) -> KVCache:
        """[1, T] -> the keys and values of all of it."""
        return jax.tree.map(lambda x: constrain(x, "layers", None, None, "kv_heads", "head_dim"), self._model.prefill(params, tokens))

    def _place_prompt(self, cache: KVCache, prefilled: KVCache, row: jax.Array) -> KVCache:
        return jax.tree.map(lambda old, new: old.at[:, row, : new.shape[2]].set(new[:, 0]), cache, prefilled)

    def _read_some(
        self, params: Params, state: tuple[jax.Array, KVCache], tokens: jax.Array, positions: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, KVCache]:
        """Read `count` [R] of `tokens` [R, C]: the logits behind the last of each row, those of before where nothing is read; and the caches."""
        logits, cache = state
        hidden, cache = self._model.decode(params, cache, tokens, positions)
        last = jnp.take_along_axis(hidden, jnp.maximum(count - 1, 0)[:, None, None], axis=1)
        found = self._model.unembed(params, last)[:, 0].astype(logits.dtype)
        return constrain(jnp.where(count[:, None] > 0, only(found, self._vocab), logits), "batch", "vocab"), cache
