"""Has a model write: requests are answered from a job's journal, or else by its endpoint, within a budget and each once."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import openai

from data_pipeline.distill.batch_api import ask_batch
from data_pipeline.distill.cost import Prices, bill
from data_pipeline.distill.journal import Journal, content_key, read_completion
from data_pipeline.endpoint import Endpoint, describe, each, is_hopeless, may_pass
from foundation.errors import DataError
from foundation.files import Json


@dataclass(frozen=True)
class WriterOptions:
    """How the endpoint is asked."""

    base_url: str | None = None  # None: OPENAI_BASE_URL, else OpenAI's own
    concurrency: int = 16
    timeout_s: float = 180
    tries: int = 8  # for one request in one run
    backoff_s: float = 1.0
    prices: Prices = field(default_factory=Prices)
    batch: bool = False  # through the Batch API
    poll_s: float = 60.0  # between looks at a batch


class Writer:
    """Answers requests.

    Raises:
      DataError: there is no key in the environment.
    """

    def __init__(self, journal: Journal, options: WriterOptions, seed: int = 0):
        if not os.environ.get("OPENAI_API_KEY"):
            raise DataError("no OPENAI_API_KEY in the environment; set it (for a server that needs none, to any text)")
        self.journal, self.options = journal, options
        o = options
        self.endpoint = Endpoint(o.base_url, timeout_s=o.timeout_s, tries=o.tries, backoff_s=o.backoff_s, seed=seed)
        self._committed = 0.0  # dollars spent, and those that requests under way may cost at most

    async def ask(self, requests: Sequence[Json], progress: Callable[[], object]) -> dict[str, str]:
        """Have every request's answer in the journal, as far as the budget goes.

        Returns:
          Why others have none: key -> "budget", "no answer: ..." (asked again in the next run) or "refused by the endpoint: ...".

        Raises:
          DataError: the endpoint turns down everything that is asked (key, address, quota).
        """
        todo = {key: request for request in requests if (key := content_key(request)) not in self.journal.answers}
        for _ in range(len(requests) - len(todo)):
            progress()
        if self.options.batch:
            return await ask_batch(self.endpoint.client, self.journal, todo, self.options.prices, self.options.poll_s, progress)
        self._committed = bill(self.journal.answers.values(), self.options.prices).dollars
        failed: dict[str, str] = {}

        async def one(key: str) -> None:
            if reason := await self._ask_one(key, todo[key]):
                failed[key] = reason
            progress()

        await each(todo, one, min(self.options.concurrency, len(todo)))
        return failed

    async def aclose(self) -> None:
        await self.endpoint.aclose()

    async def _ask_one(self, key: str, request: Json) -> str:
        prices = self.options.prices
        most = prices.most(request)
        if prices.budget is not None and self._committed + most > prices.budget:
            return "budget"
        self._committed += most
        try:
            answer = await self.endpoint.ask(
                lambda client: client.chat.completions.create(**request), lambda answer: read_completion(answer.to_dict(warnings=False))
            )
        except (openai.APIError, ValueError) as error:
            if is_hopeless(error):
                remedy = "check OPENAI_API_KEY, --base-url, --model and your quota"
                raise DataError(f"the endpoint turns requests down ({describe(error)}); {remedy}") from error
            return f"{'no answer' if may_pass(error) else 'refused by the endpoint'}: {describe(error)}"
        else:
            self.journal.add(key, request, answer)
            self._committed += prices.of(answer["tokens_in"], answer["tokens_out"])
            return ""
        finally:
            self._committed -= most
