"""Where to look in a pair's sides: Pivotal Token Search (Phi-4 technical report, arXiv 2412.08905) without its model.

p(success | prefix) is estimated by sampling a model's continuations of the prefix and judging each. A side's tokens are cut in two again and
again, wherever the ends of a piece differ in p by the threshold or more, down to single tokens. What rises and falls again within a piece is so
missed; the price is some log2(length) prefixes for each pivotal token instead of all.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from data_pipeline import answers
from data_pipeline.encode import sides
from data_pipeline.pairs import Pair, Span
from data_pipeline.template import Template
from data_pipeline.tokenizer import Tokenizer

Side = Literal["chosen", "rejected"]
SIDES: tuple[Side, ...] = ("chosen", "rejected")


def wanted(known: Mapping[int, float], last: int, threshold: float) -> list[int]:
    """The places to look at next: both ends, then the middle of each piece whose ends differ. [] once there is none.

    Args:
      known: p at the places looked at, of 0 .. `last`.
    """
    if ends := [place for place in dict.fromkeys((0, last)) if place not in known]:
        return ends
    return [(a + b) // 2 for a, b in itertools.pairwise(sorted(known)) if b - a > 1 and _differ(known, a, b, threshold)]


def pivotal(known: Mapping[int, float], threshold: float) -> list[int]:
    """The places in front of the steps that change p by the threshold or more, as far as both of a step's ends are known."""
    return [a for a, b in itertools.pairwise(sorted(known)) if b - a == 1 and _differ(known, a, b, threshold)]


def _differ(known: Mapping[int, float], a: int, b: int, threshold: float) -> bool:
    return abs(known[b] - known[a]) >= threshold - 1e-9  # 0.7 - 0.5 is less than 0.2


@dataclass(frozen=True)
class Track:
    """The places of one side where the search may look.

    Attributes:
      ids: prompt and answer, as a model is trained on them.
      text: the side's code, and what follows it in the answer.
      cuts: of each place, (how many ids stand in front of it, how many characters of `text` do).
      fence: the line that opens the code's block, and the mark that closes it; "": the code stands in none.
    """

    pair: Pair
    side: Side
    ids: list[int]
    text: str
    cuts: list[tuple[int, int]]
    fence: tuple[str, str]

    def program(self, place: int, said: str, whole: bool) -> str | None:
        """The program that a continuation makes of the code in front of a place; None: it has no end.

        Args:
          whole: the model ended it, or closed the block; the limit didn't.
        """
        before, (opening, mark) = self.text[: self.cuts[place][1]], self.fence
        if not opening:
            return before + answers.final(said, before) if whole else None
        block = answers.fences(f"{opening}\n{before}{said}" + (f"\n{mark}" if whole else ""))[0]
        return block.code if block.closed else None

    def span(self, place: int) -> Span:
        """The characters of the code between a place and the next one."""
        code = len(getattr(self.pair, self.side))
        return min(self.cuts[place][1], code), min(self.cuts[place + 1][1], code)


def tracks(pair: Pair, tok: Tokenizer, how: Template, wanted_sides: Sequence[Side]) -> list[Track]:
    """The sides to search. The rejected one begins where it leaves the chosen one: a tree has what is in front of that on its trunk, where no
    token is unlearned. A place never lies within a character.

    Raises:
      UnusableError: the template can't write the pair.
    """
    text, _, *both = sides(pair, tok, how)
    opening = answers.FENCE.fullmatch(text.before_code.rstrip("\n").rpartition("\n")[2])
    in_prompt = len(pair.chosen) - len(text.chosen)  # a completion task's
    chosen, rejected = (side.ids.tolist() for side in both)
    alike = next((n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected)))
    found = []
    for name, side, first in zip(SIDES, both, (0, alike), strict=True):
        starts, ends = [start for start, _ in side.code_offsets.tolist()], [end for _, end in side.code_offsets.tolist()]
        reached = [0, *itertools.accumulate(ends, max)]
        clean = [at for at, (start, end) in enumerate(zip([*starts, reached[-1]], reached, strict=True)) if start >= end]
        cuts = [(side.code.start + at, in_prompt + reached[at]) for at in clean if side.code.start + at >= first]
        if name in wanted_sides and len(cuts) > 1:
            fence = (opening[0], opening[1]) if opening else ("", "")
            found.append(Track(pair, name, side.ids.tolist(), getattr(pair, name) + text.after_code, cuts, fence))
    return found
