"""What answers cost, and what a job will."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from foundation.errors import DataError
from foundation.files import Json


@dataclass(frozen=True)
class Prices:
    """In dollars for a million tokens. `budget` is in dollars, for all runs of a job together.

    Raises:
      DataError: a budget without prices.
    """

    tokens_in: float = 0.0
    tokens_out: float = 0.0
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.budget is not None and not self.known:
            raise DataError("a budget needs prices: give --price-in and --price-out, in dollars for a million tokens")

    @property
    def known(self) -> bool:
        return self.tokens_in + self.tokens_out > 0

    def of(self, tokens_in: int, tokens_out: int, batch: bool = False) -> float:
        """Dollars of an answer; one of a batch costs half."""
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / (2e6 if batch else 1e6)

    def most(self, request: Json, batch: bool = False) -> float:
        """Dollars that an answer can cost: it is as long as it may be, and every second character asked is a token."""
        return self.of(len(json.dumps(request["messages"])) // 2, request["max_completion_tokens"], batch)


@dataclass
class Bill:
    """What a job has cost so far, all its runs together."""

    answers: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    dollars: float = 0.0


def bill(answers: Iterable[Json], prices: Prices) -> Bill:
    """Of journalled answers."""
    total = Bill()
    for answer in answers:
        total.answers += 1
        total.tokens_in += answer["tokens_in"]
        total.tokens_out += answer["tokens_out"]
        total.dollars += prices.of(answer["tokens_in"], answer["tokens_out"], answer.get("batch", False))
    return total


CHARS_PER_TOKEN = 4.3
"""Of what is asked and answered, English and Python: 4.5 and 4.2 by Qwen2.5's tokenizer, over 200 requests and the 386 shipped pairs."""

TYPICAL_ANSWER = 373
"""Tokens of an answer, where none is there to go by: the shipped pairs' mean, by the same tokenizer."""


@dataclass(frozen=True)
class Estimate:
    """What requests will come to."""

    requests: int
    tokens_in: int
    tokens_out: int
    dollars: float
    at_most: float  # dollars, if every answer is as long as it may be


def estimate(requests: Sequence[Json], answers: Sequence[Json], prices: Prices, batch: bool) -> Estimate:
    """Of requests that aren't answered yet. `answers`: journalled ones to go by, if there are any."""
    asked = sum(round(len(json.dumps(request["messages"], ensure_ascii=False)) / CHARS_PER_TOKEN) for request in requests)
    each = sum(answer["tokens_out"] for answer in answers) / len(answers) if answers else TYPICAL_ANSWER
    answered = round(sum(min(each, request["max_completion_tokens"]) for request in requests))
    most = sum(prices.most(request, batch) for request in requests)
    return Estimate(len(requests), asked, answered, prices.of(asked, answered, batch), most)
