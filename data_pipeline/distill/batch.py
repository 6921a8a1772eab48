"""OpenAI's Batch API: half the price, an answer within a day. A batch under way is in the journal, so a killed job goes on waiting for it."""

import asyncio
import io
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import openai
from openai.types.chat import ChatCompletion

from data_pipeline.distill.journal import Journal

if TYPE_CHECKING:
    from data_pipeline.distill.teacher import TeacherOptions

MOST = 50_000  # requests that one batch may hold
OVER = ("completed", "failed", "expired", "cancelled")


async def ask_batch(
    client: openai.AsyncOpenAI, journal: Journal, todo: dict[str, dict[str, Any]], options: "TeacherOptions", progress: Callable[[], object]
) -> dict[str, str]:
    """Have the answers to `todo` (key -> request) in the journal; returns why others have none."""
    failed: dict[str, str] = {}
    submitted = {key for batch, keys in journal.batches.items() for key in keys if key in todo}
    under_way = [batch for batch, keys in journal.batches.items() if any(key in todo for key in keys)]
    rest, left = _affordable([key for key in todo if key not in submitted], todo, journal, options)
    failed.update(dict.fromkeys(left, "budget"))
    for start in range(0, len(rest), MOST):
        keys = rest[start : start + MOST]
        lines = (json.dumps({"custom_id": k, "method": "POST", "url": "/v1/chat/completions", "body": todo[k]}) for k in keys)
        upload = await client.files.create(file=("requests.jsonl", io.BytesIO("\n".join(lines).encode())), purpose="batch")
        batch = await client.batches.create(input_file_id=upload.id, endpoint="/v1/chat/completions", completion_window="24h")
        journal.add_batch(batch.id, keys)
        under_way.append(batch.id)
    for name in under_way:
        batch = await client.batches.retrieve(name)
        while batch.status not in OVER:
            await asyncio.sleep(options.poll_s)
            batch = await client.batches.retrieve(name)
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            for line in (await client.files.content(file)).text.splitlines():
                _take(json.loads(line), journal, todo, failed)
        for key in journal.batches[name]:
            if key in todo and key not in journal.answers:
                failed.setdefault(key, f"no answer: batch {batch.status}")
            progress()
    return failed


def _affordable(
    keys: list[str], todo: dict[str, dict[str, Any]], journal: Journal, options: "TeacherOptions"
) -> tuple[list[str], list[str]]:
    """Keys that the budget covers even if every answer is as long as it may be, at half price, and the others."""
    if options.budget is None:
        return keys, []
    spent = sum(a["tokens_in"] * options.price_in + a["tokens_out"] * options.price_out for a in journal.answers.values()) / 2e6
    for n, key in enumerate(keys):
        most_in, most_out = len(json.dumps(todo[key]["messages"])) // 2, todo[key]["max_completion_tokens"]
        spent += (most_in * options.price_in + most_out * options.price_out) / 2e6
        if spent > options.budget:
            return keys[:n], keys[n:]
    return keys, []


def _take(line: dict[str, Any], journal: Journal, todo: dict[str, dict[str, Any]], failed: dict[str, str]) -> None:
    from data_pipeline.distill.teacher import read_completion

    key, response = line["custom_id"], line.get("response") or {}
    if key in todo and key not in journal.answers:
        if response.get("status_code") == 200:
            answer = read_completion(ChatCompletion.model_validate(response["body"]))
            journal.add(key, todo[key], answer | {"batch": True})
        else:
            failed[key] = f"no answer: batch {response.get('status_code', 'error')}"
