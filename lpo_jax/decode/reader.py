"""A model that reads token sequences which may change at their ends, without reading again what stayed.

Dims: R rows, C tokens that a call reads, V vocabulary.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lpo_jax.decode.engine import programs
from lpo_jax.decode.request import LoadedModel, check_model
from lpo_jax.decode.rules.warp import only
from lpo_jax.decode.tables import Tables, chunk_widths, page_slots, pages_of
from lpo_jax.model.attention import NO_PAGE, PAGES_AXES, KVPages, copy_pages
from lpo_jax.model.decoder import Params
from lpo_jax.sharding import constrain, named


class Reader:
    """A model's cache, and for each row the tokens that the cache holds. Tokens that a text has lost are forgotten by not counting them.

    Args:
      name: of the model, for errors.
      vocab: tokens that it has; the logits behind them are -inf.
      longest: tokens that a row holds.
      width: tokens that a call reads.
      page: tokens of a page of the cache.
    """

    def __init__(self, name: str, model: LoadedModel, vocab: int, rows: int, longest: int, width: int, page: int = 128):
        check_model(model, name, vocab, rows, longest, f"{longest} tokens are asked for")
        self._model, self._params, self._mesh, self._vocab = model.model, model.params, model.mesh, vocab
        self._rows, self._longest, self._width, self._slots = rows, longest, width, page_slots(page, longest)
        self._pages = pages_of([self._model], rows, model.cuts, self._slots, longest, None)
        self._tables = Tables(rows, model.cuts, self._pages // model.cuts, self._slots, longest)
        self._held: dict[int, list[int]] = {}  # by row
        cache = jax.tree.map(lambda x: named(self._mesh, PAGES_AXES, x.shape), jax.eval_shape(self._empty)[1])
        state = named(self._mesh, ("batch", "vocab"), (rows, model.model.config.vocab_size)), cache
        self._prefill = jax.jit(self._model.fill, out_shardings=cache, donate_argnums=1)
        self._copy = jax.jit(copy_pages, out_shardings=cache, donate_argnums=0)
        self._extend = jax.jit(self._read_some, out_shardings=state, donate_argnums=1)
        with jax.set_mesh(self._mesh):
            self._logits, self._cache = jax.jit(self._empty, out_shardings=state)()

    def begin(self, row: int, prompt: list[int]) -> None:
        """Fill a row with a prompt, whose last token is left to `read`."""
        if row in self._held:
            self._tables.leave(row)
        admitted = self._tables.admit(row, prompt, 0, len(prompt))
        assert admitted  # there are pages for all rows' longest texts
        with jax.set_mesh(self._mesh):
            while (chunks := self._tables.next_chunks(1)) is not None:
                self._cache = self._prefill(self._params, self._cache, chunks.tokens, chunks.starts, chunks.table)
            self._cache = self._copy(self._cache, *self._tables.begin(row))
        self._held[row] = prompt[:-1]

    def read(self, wanted: Mapping[int, list[int]]) -> jax.Array:
        """What the model expects behind these rows' tokens: logits [R, V]. Only what a row doesn't hold yet is computed."""
        at = {row: self._shared(row, ids) for row, ids in wanted.items()}
        with jax.set_mesh(self._mesh):
            for row, ids in wanted.items():
                self._tables.grow(row, len(ids))
                if at[row] < len(ids) and (copy := self._tables.own(row, at[row])) is not None:
                    self._cache = self._copy(self._cache, *copy)
            while any(at[row] < len(ids) for row, ids in wanted.items()):
                tokens, count = np.zeros((self._rows, self._width), np.int32), np.zeros(self._rows, np.int32)
                positions, table = np.zeros_like(tokens), np.full_like(self._tables.table, NO_PAGE)
                for row, ids in wanted.items():
                    some = ids[at[row] : at[row] + self._width]
                    if not some:
                        continue
                    tokens[row, : len(some)] = some
                    positions[row] = at[row] + np.arange(self._width)  # behind the row's end nothing is seen
                    count[row], table[row] = len(some), self._tables.table[row]
                    at[row] += len(some)
                state = self._logits, self._cache
                self._logits, self._cache = self._extend(self._params, state, tokens, positions, table, count)
        for row, ids in wanted.items():
            self._held[row] = list(ids)
        return self._logits

    def warm_up(self) -> None:
        """Compile what `begin` and `read` need for prompts of any length; nothing may be at work."""
        for width in chunk_widths(self._slots):
            prompt = [0] * min(width + 1, self._longest)
            self.begin(0, prompt)
            self.read({0: prompt})

    def compilations(self) -> int:
        """How many programs have been compiled so far."""
        return programs(self._prefill, self._copy, self._extend)

    def _shared(self, row: int, ids: list[int]) -> int:
        """How many of `ids` needn't be read: those held already, but not the last if others had followed it."""
        held = self._held[row]
        if held == ids:
            return len(ids)
        same = next((i for i, (a, b) in enumerate(zip(held, ids, strict=False)) if a != b), min(len(held), len(ids)))
        return min(same, len(ids) - 1)

    def _empty(self) -> tuple[jax.Array, KVPages]:
        wide = jnp.promote_types(self._model.compute_dtype, jnp.float32)
        return jnp.zeros((self._rows, self._model.config.vocab_size), wide), self._model.empty_cache(self._pages, self._slots)

    def _read_some(
        self,
        params: Params,
        state: tuple[jax.Array, KVPages],
        tokens: jax.Array,
        positions: jax.Array,
        table: jax.Array,
        count: jax.Array,
    ) -> tuple[jax.Array, KVPages]:
        """Read `count` [R] of `tokens` [R, C]: the logits behind the last of each row, those of before where nothing is read; and the caches."""
        logits, cache = state
        hidden, cache = self._model.decode(params, cache, tokens, positions, table)
        last = jnp.take_along_axis(hidden, jnp.maximum(count - 1, 0)[:, None, None], axis=1)
        found = self._model.unembed(params, last)[:, 0].astype(logits.dtype)
        return constrain(jnp.where(count[:, None] > 0, only(found, self._vocab), logits), "batch", "vocab"), cache
