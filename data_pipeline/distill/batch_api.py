"""OpenAI's Batch API: half the price, an answer within a day. A batch under way is in the journal, so a killed job goes on waiting for it."""

import asyncio
import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import openai

from data_pipeline.distill.cost import Prices, bill
from data_pipeline.distill.journal import Batch, Journal, content_key, read_completion
from data_pipeline.endpoint import describe
from foundation.errors import DataError
from foundation.files import Json

ENDPOINT: Final = "/v1/chat/completions"
MARK = "lpo_jax_batch"  # key of the metadata by which a batch of ours is found again
MOST = 50_000  # requests that one batch may hold
OVER = ("completed", "failed", "expired", "cancelled")


async def ask_batch(
    client: openai.AsyncOpenAI, journal: Journal, todo: dict[str, Json], prices: Prices, poll_s: float, progress: Callable[[], object]
) -> dict[str, str]:
    """Have the answers to `todo` (key -> request) in the journal; returns why others have none.

    Raises:
      DataError: the endpoint has no Batch API, or doesn't take part.
    """
    failed: dict[str, str] = {}
    try:
        await _find_lost(client, journal)
        open_ = {mark: batch for mark, batch in journal.batches.items() if batch.id and not batch.over}
        under_way = {mark: batch for mark, batch in open_.items() if not todo.keys().isdisjoint(batch.keys)}
        submitted = {key for batch in under_way.values() for key in batch.keys} & todo.keys()
        rest, left = _affordable(submitted, todo, journal, prices)
        failed.update(dict.fromkeys(left, "budget"))
        for start in range(0, len(rest), MOST):
            keys = rest[start : start + MOST]
            mark = content_key({"keys": keys, "earlier": len(journal.batches)})
            under_way[mark] = await _submit(client, journal, mark, [(key, todo[key]) for key in keys])
        for mark, batch in under_way.items():
            status = await _collect(client, journal, batch.id, todo, failed, poll_s)
            journal.put_batch(mark, replace(batch, over=True))
            for key in batch.keys:
                if key in todo:
                    if key not in journal.answers:
                        failed.setdefault(key, f"no answer: batch {status}")
                    progress()
    except openai.APIError as error:
        remedy = "repeat the command to go on, or without --batch if the endpoint has none"
        raise DataError(f"the endpoint's Batch API failed ({describe(error)}); {remedy}") from error
    return failed


async def _find_lost(client: openai.AsyncOpenAI, journal: Journal) -> None:
    """Look up batches whose creation a kill left in doubt by the mark in their metadata; those that the endpoint doesn't have are dropped."""
    lost = {mark: batch for mark, batch in journal.batches.items() if not batch.id and not batch.over}
    if not lost:
        return
    ids = {(there.metadata or {}).get(MARK): there.id async for there in client.batches.list(limit=100)}
    for mark, batch in lost.items():
        journal.put_batch(mark, replace(batch, id=ids[mark]) if mark in ids else replace(batch, over=True))


async def _submit(client: openai.AsyncOpenAI, journal: Journal, mark: str, requests: list[tuple[str, Json]]) -> Batch:
    lines = (json.dumps({"custom_id": key, "method": "POST", "url": ENDPOINT, "body": body}) for key, body in requests)
    upload = await client.files.create(file=("requests.jsonl", io.BytesIO("\n".join(lines).encode())), purpose="batch")
    batch = Batch([key for key, _ in requests])
    journal.put_batch(mark, batch)
    created = await client.batches.create(input_file_id=upload.id, endpoint=ENDPOINT, completion_window="24h", metadata={MARK: mark})
    journal.put_batch(mark, batch := replace(batch, id=created.id))
    return batch


async def _collect(
    client: openai.AsyncOpenAI, journal: Journal, name: str, todo: dict[str, Json], failed: dict[str, str], poll_s: float
) -> str:
    """Wait for a batch and journal its answers; returns how it ended."""
    while (batch := await client.batches.retrieve(name)).status not in OVER:
        await asyncio.sleep(poll_s)
    for file in filter(None, (batch.output_file_id, batch.error_file_id)):
        for text in filter(str.strip, (await client.files.content(file)).text.split("\n")):
            try:
                line = json.loads(text)
                key, response = line["custom_id"], line.get("response") or {}
                if key not in todo or key in journal.answers:
                    continue
                if response.get("status_code") != 200:
                    failed[key] = f"no answer: batch {response.get('status_code', 'error')}"
                    continue
                answer = read_completion(response["body"])
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                continue  # no line of a batch's: its request counts as one without an answer
            journal.add(key, todo[key], answer | {"batch": True})
    return batch.status


def _affordable(submitted: set[str], todo: dict[str, Json], journal: Journal, prices: Prices) -> tuple[list[str], list[str]]:
    """Keys that the budget covers beside those submitted, even if every answer is as long as it may be, at half price; and the others."""
    keys = [key for key in todo if key not in submitted]
    if prices.budget is None:
        return keys, []
    spent = bill(journal.answers.values(), prices).dollars + sum(prices.most(todo[key], batch=True) for key in submitted)
    for n, key in enumerate(keys):
        spent += prices.most(todo[key], batch=True)
        if spent > prices.budget:
            return keys[:n], keys[n:]
    return keys, []
