"""A growing text in the tokens of another tokenizer than the one that writes it."""

import re

from data_pipeline.tokenizer import Tokenizer
from lpo_jax.decode.rules.vocab_map import spell

_TAIL = 64  # characters of a text that are tokenised anew, or more until a place to cut


def boundary(tokenizer: Tokenizer) -> re.Pattern | None:
    """What may be cut out of a text so that what stands in front and what stands behind are tokenised as within the whole. None: nothing.

    If no token has a letter in front of a space, nothing joins letter and space: between two letters the text is cut in front of the space, or
    at it, if the tokenizer puts a space of its own in front of a text.
    """

    def tokens(text: str) -> list[int]:
        return tokenizer.encode(text).ids

    if any(re.search(rb"[A-Za-z] ", text) for text in spell(tokenizer).values()):
        return None
    if tokens("a b") == tokens("a") + tokens(" b"):
        return re.compile("(?<=[A-Za-z])(?= [A-Za-z])")
    return re.compile("(?<=[A-Za-z]) (?=[A-Za-z])") if tokens("a b") == tokens("a") + tokens("b") else None


class OwnTokens:
    """A growing text in a tokenizer's own tokens, `ids`: at any time what `encode` makes of the whole.

    The text in front of the last `boundary` of a long end is settled: only what follows is tokenised anew.
    """

    def __init__(self, tokenizer: Tokenizer, boundary: re.Pattern | None, text: str):
        self._tokenizer, self._boundary = tokenizer, boundary
        self._settled: list[int] = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        self._tail = ""
        self.ids: list[int] = []
        self.add(text)

    def add(self, text: str) -> None:
        """The text goes on."""
        self._tail += text
        if len(self._tail) > _TAIL and self._boundary is not None:
            for cut in reversed(list(self._boundary.finditer(self._tail))):
                self._settled += self._tokens(self._tail[: cut.start()])
                self._tail = self._tail[cut.end() :]
                break
        self.ids = [*self._settled, *self._tokens(self._tail)] or [self._tokenizer.eos_id]

    def _tokens(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids
