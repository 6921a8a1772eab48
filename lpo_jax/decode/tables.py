"""Where the texts at work lie: which row is on which pages, which prompts' pages are still to be filled, and whether there is room for more.

A prompt's tokens are read in advance but for its last, which the first step reads. Those that fill whole pages lie on pages that all prompts with
this beginning share. The rest of them lies on a page that is shared by all samples of this very prompt, and that each row copies when it begins,
since the row goes on writing there.

What a page holds is computed a page at a time, in order, whoever asks first. Pages and the chunks of a prompt are counted from its own start, so
what is computed doesn't depend on who else is there.

Rows, pages and tables lie in parts, as the mesh cuts the batch. Dims: R rows, M pages of a row at most, D parts, G chunks of a call, T tokens of a chunk.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np

from lpo_jax.config import ConfigError
from lpo_jax.decode.pages import Pages
from lpo_jax.model.attention import NO_PAGE
from lpo_jax.model.decoder import Model

MIN_CHUNK = 32


def chunk_widths(slots: int) -> list[int]:
    """The numbers of tokens that chunks are padded to: powers of two from 32 on, up to a whole page."""
    return [MIN_CHUNK << i for i in range(slots.bit_length()) if MIN_CHUNK << i < slots] + [slots]


def page_slots(wanted: int, longest: int) -> int:
    """The tokens of a page: no more than a text can have."""
    return min(wanted, 1 << (longest - 1).bit_length())


def pages_of(models: Sequence[Model], rows: int, parts: int, slots: int, longest: int, gib: float | None) -> int:
    """How many pages fit into so much memory; where none is said, what all rows' longest texts need.

    Raises:
      ConfigError: one text doesn't fit.
    """
    of_row = -(-longest // slots) + 1  # one more: its prompt's last page, which others may copy as well
    if gib is None:
        return rows * of_row
    shapes = (jax.eval_shape(lambda model=model: model.empty_cache(1, slots)) for model in models)
    size = sum(x.size * x.dtype.itemsize for shape in shapes for x in jax.tree.leaves(shape))
    pages = int(gib * 2**30 / size) // parts
    if pages < of_row:
        raise ConfigError(
            f"cache_gib is {gib:g}: a text of {longest} tokens needs {of_row * parts * size / 2**30:.3g}"
            f"{f' ({parts} parts)' if parts > 1 else ''}: raise it, or lower max_len_tokens"
        )
    return min(pages * parts, rows * of_row)


class Chunks(NamedTuple):
    """Parts of prompts to read, a call's; what isn't one has no page in the table."""

    tokens: np.ndarray  # [G, T] int32
    starts: np.ndarray  # [G] int32: the position of each one's first token
    table: np.ndarray  # [G, M] int32
    adapters: np.ndarray  # [G] int32: the number of each one's adapter; 0: none


class Copy(NamedTuple):
    """A page to copy in each part, [D] int32 each; `NO_PAGE` where there is none."""

    source: np.ndarray
    target: np.ndarray


@dataclass
class _Text:
    """What a row holds."""

    prompt: Sequence[int]
    adapter: int
    shared: list[int]  # pages of the prompt: whole ones, and behind them the one to copy, if there is a rest
    rest: int  # tokens on the one to copy
    own: list[int] = field(default_factory=list)  # pages behind the whole ones
    begun: bool = False

    @property
    def whole(self) -> int:
        """How many of `shared` stay with the row."""
        return len(self.shared) - (self.rest > 0 and not self.begun)


class Tables:
    """The pages of `rows` texts.

    Args:
      parts: into which the mesh cuts rows and pages.
      pages: of each part.
      slots: tokens of a page.
      longest: tokens of a text at most.
    """

    def __init__(self, rows: int, parts: int, pages: int, slots: int, longest: int):
        self.slots, self.parts, self.rows = slots, parts, rows
        self.of_row = -(-longest // slots)  # M
        self.pools = [Pages(pages) for _ in range(parts)]
        self.table = np.full((rows, self.of_row), NO_PAGE, np.int32)
        self._texts: dict[int, _Text] = {}  # in the order in which they came

    def part(self, row: int) -> int:
        return row * self.parts // self.rows

    # --- Coming and going.

    def admit(self, row: int, prompt: Sequence[int], adapter: int, length: int) -> bool:
        """Let a row begin with a prompt, with pages for a text of `length` tokens. False: there aren't enough, and nothing has changed.

        As long as others are at work in its part, one page for each of them is left, so that they can go on.
        """
        pool, (whole, rest) = self.pools[self.part(row)], divmod(len(prompt) - 1, self.slots)
        names = self._names(prompt, adapter, whole, rest)
        found = [pool.named(name) for name in names]
        own = -(-length // self.slots) - whole
        needed = own + sum(page is None or pool.is_idle(page) for page in found)
        others = [other for other in self._texts if self.part(other) == self.part(row)]
        spare = sum(len(self._pages(self._texts[other])) < self.of_row for other in others)
        if needed + spare > pool.available:
            return False
        for page in found:
            if page is not None:
                pool.hold(page)
        shared = [pool.take(name) if page is None else page for name, page in zip(names, found, strict=True)]
        self._texts[row] = text = _Text(prompt, adapter, shared, rest)
        text.own = [pool.take() for _ in range(own)]
        self._write(row)
        return True

    def grow(self, row: int, length: int) -> bool:
        """Let a row's text have room for `length` tokens. False: there aren't enough pages, and nothing has changed."""
        pool, text = self.pools[self.part(row)], self._texts[row]
        more = -(-length // self.slots) - len(self._pages(text))
        if more > pool.available:
            return False
        text.own += [pool.take() for _ in range(more)]
        if more > 0:
            self._write(row)
        return True

    def leave(self, row: int) -> None:
        """Take a row's pages from it."""
        pool, text = self.pools[self.part(row)], self._texts.pop(row)
        for page in [*text.own, *text.shared][::-1]:  # a beginning is kept longer than what follows it
            pool.leave(page)
        self.table[row] = NO_PAGE

    def in_order(self) -> list[int]:
        """The rows that hold a text, as they came."""
        return list(self._texts)

    def latest(self, part: int) -> int:
        """The row of a part that came last."""
        return next(row for row in reversed(self._texts) if self.part(row) == part)

    # --- Prompts.

    def next_chunks(self, each: int) -> Chunks | None:
        """The next parts of prompts to read, at most `each` for each part of the rows; None: all are read.

        They count as read from now on. Chunks of one call may follow one another. All have one width, that of the one that has waited longest.
        """
        width, chosen = 0, [list[tuple[int, int]]() for _ in self.pools]
        for row, text in self._texts.items():
            part = self.part(row)
            for place, page in enumerate(() if text.begun else text.shared):
                if self.pools[part].is_filled(page):
                    continue
                its = self._width(text, place)
                width = width or its
                if its != width or len(chosen[part]) == each:
                    break
                chosen[part].append((row, place))
                self.pools[part].fill(page)
        return self._chunks(chosen, width, each) if width else None

    def ready(self) -> list[int]:
        """Rows that haven't begun and whose prompts have been read."""
        filled = lambda row, page: self.pools[self.part(row)].is_filled(page)  # noqa: E731
        return [row for row, text in self._texts.items() if not text.begun and all(filled(row, page) for page in text.shared)]

    def begin(self, row: int) -> Copy:
        """Let a row that is ready begin: the page that it must copy before anything else is read or written."""
        text, part = self._texts[row], self.part(row)
        text.begun = True
        if not text.rest:
            return self._copy(part, NO_PAGE, NO_PAGE)
        source = text.shared.pop()
        self.pools[part].leave(source)
        return self._copy(part, source, text.own[0])

    def own(self, row: int, position: int) -> Copy | None:
        """Let a row that has begun write from a position on that may lie within its prompt: the page that it must copy first, if any."""
        text, pool, place = self._texts[row], self.pools[self.part(row)], position // self.slots
        if place >= len(text.shared):
            return None
        first, others, text.shared = text.shared[place], text.shared[place + 1 :], text.shared[:place]
        new = pool.take()
        for page in (first, *others):
            pool.leave(page)
        text.own = [new, *(pool.take() for _ in others), *text.own]
        self._write(row)
        return self._copy(self.part(row), first, new)

    def _copy(self, part: int, source: int, target: int) -> Copy:
        copy = Copy(*np.full((2, self.parts), NO_PAGE, np.int32))
        copy.source[part], copy.target[part] = source, target
        return copy

    # ---

    def _pages(self, text: _Text) -> list[int]:
        return [*text.shared[: text.whole], *text.own]

    def _write(self, row: int) -> None:
        pages = self._pages(self._texts[row])
        self.table[row, : len(pages)] = pages

    def _names(self, prompt: Sequence[int], adapter: int, whole: int, rest: int) -> list[bytes]:
        """Of a prompt's pages: each follows from all the tokens up to the page's end."""
        names, before = [], hashlib.blake2b(np.int32(adapter).tobytes(), digest_size=16)
        for start in range(0, len(prompt) - 1, self.slots):
            before.update(np.array(prompt[start : min(start + self.slots, len(prompt) - 1)], np.int32).tobytes())
            names.append(before.digest())
        assert len(names) == whole + (rest > 0)
        return names

    def _width(self, text: _Text, place: int) -> int:
        """Of a prompt's chunk: a whole page, or what holds the rest."""
        tokens = min(self.slots, len(text.prompt) - 1 - place * self.slots)
        return next(width for width in chunk_widths(self.slots) if width >= tokens)

    def _chunks(self, chosen: list[list[tuple[int, int]]], width: int, each: int) -> Chunks:
        G = each * self.parts
        tokens, starts, adapters = np.zeros((G, width), np.int32), np.zeros(G, np.int32), np.zeros(G, np.int32)
        table = np.full((G, self.of_row), NO_PAGE, np.int32)
        for part, rows in enumerate(chosen):
            for i, (row, place) in enumerate(rows, part * each):
                text, start = self._texts[row], place * self.slots
                some = text.prompt[start : min(start + self.slots, len(text.prompt) - 1)]
                tokens[i, : len(some)], starts[i], adapters[i] = some, start, text.adapter
                table[i, : place + 1] = text.shared[: place + 1]
        return Chunks(tokens, starts, table, adapters)
