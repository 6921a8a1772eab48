"""A paid job outlives whatever an endpoint says: each odd answer is read, counted as a rejection, or left for the next run."""

import asyncio
import contextlib
import json
import re
from collections import Counter

import pytest
from starlette.responses import Response

from data_pipeline.distill import prompts
from data_pipeline.distill.cost import Prices
from data_pipeline.distill.journal import Journal, content_key
from data_pipeline.distill.knowledge import Rule
from data_pipeline.distill.run import distill
from data_pipeline.distill.writer import Writer, WriterOptions
from demos.standin import Standin, serve
from tests.helpers.endpoints import listening
from tests.helpers.seed_pairs import PAIRS

HALF = "\ud83d"
READ = {  # what of a whole answer is replaced -> it's a pair all the same
    "a list of parts": lambda a, text: a["message"].update(content=[{"type": "text", "text": text}]),
    "parts that are text": lambda a, text: a["message"].update(content=[text[:50], {"type": "image"}, text[50:]]),
    "a thought in front": lambda a, text: a["message"].update(content=f"<think>\nSECURE:\n```python\nx = 1\n```\n</think>\n{text}"),
    "an end mark behind": lambda a, text: a["message"].update(content=f"{text}<|im_end|>\nINSTRUCTION: more"),
    "a field for its thoughts": lambda a, text: a["message"].update(reasoning_content="Hm.", annotations=[{}]),
    "Windows": lambda a, text: a["message"].update(content=text.replace("\n", "\r\n")),
}
REJECTED = {
    "content is a number": (lambda a, text: a["message"].update(content=5), "no instruction part"),
    "content is null": (lambda a, text: a["message"].update(content=None), "no instruction part"),
    "no message": (lambda a, text: a.pop("message"), "no instruction part"),
    "message is text": (lambda a, text: a.update(message=text), "no instruction part"),
    "a tool is called": (lambda a, text: a["message"].update(content=None, tool_calls=[{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}]), "no instruction part"),  # fmt: skip
    "refusal": (lambda a, text: a["message"].update(content=None, refusal="No."), "refused"),
    "refusal is an object": (lambda a, text: a["message"].update(refusal={"why": "No."}), "refused"),
    "finish_reason is a list": (lambda a, text: a.update(finish_reason=["stop"]) or a["message"].update(content=""), "no instruction part"),
    "half a character": (lambda a, text: a["message"].update(content=text.replace("INSTRUCTION:\n", f"INSTRUCTION:\n{HALF}")), "half a character"),
    "only a thought": (lambda a, text: a["message"].update(content=f"<think>{text}"), "no instruction part"),
}  # fmt: skip
OUTER = {  # what is beside the choice
    "no usage": lambda body: body.pop("usage"),
    "usage is text": lambda body: body.update(usage={"prompt_tokens": "10", "completion_tokens": None}),
    "usage is odd": lambda body: body.update(usage={"prompt_tokens": -(10**9), "completion_tokens": 10**400}),
    "usage is a list": lambda body: body.update(usage=[1]),
    "no model": lambda body: body.pop("model"),
    "model is half a character": lambda body: body.update(model=f"m{HALF}\n# x"),
    "model is a number": lambda body: body.update(model=7),
}
UNREAD = {
    "HTML": b"<html>Log in</html>",
    "an array": b"[1]",
    "no choices": b'{"choices": []}',
    "choices are null": b'{"choices": null}',
    "a choice is a number": b'{"choices": [5]}',
    "nested without end": b"[" * 100_000,
    "nothing": b"",
    "no UTF-8": b'{"choices": [{"message": {"content": "\xff"}}]',
}


def rule(number):
    return Rule(f"r{number}", f"CWE-{number}", f"rule number {number}", f"This is rule number {number}.", "cwe", "any")


class Odd(Standin):
    """Answers the n-th request in the n-th way, and all others well."""

    def __init__(self):
        super().__init__(PAIRS, 0, 0, None)

    async def chat(self, asked):
        request = await asked.json()
        prompt = request["messages"][-1]["content"]
        way = WAYS[int(re.search(r"This is rule number (\d+)\.", prompt)[1])]
        if way in UNREAD:
            return Response(UNREAD[way], media_type="application/json")
        body = self.completion(request, "")
        choice = body["choices"][0]
        if way in READ:
            READ[way](choice, choice["message"]["content"])
        elif way in REJECTED:
            REJECTED[way][0](choice, choice["message"]["content"])
        else:
            OUTER[way](body)
        return Response(json.dumps(body), media_type="application/json")


WAYS = [*READ, *REJECTED, *OUTER, *UNREAD]


@pytest.fixture
def odd_endpoint():
    with listening(Odd()) as url:
        yield url


def test_each_odd_answer_is_counted(tmp_path, monkeypatch, odd_endpoint):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-unused")
    job = prompts.Job("m", len(WAYS), near=2.0)
    options = WriterOptions(odd_endpoint, tries=2, backoff_s=0.001, prices=Prices(1, 1))
    for _ in range(2):  # the second run asks again only what wasn't answered
        summary = distill(job, list(map(rule, range(len(WAYS)))), ["flask"], tmp_path / "job", options, None)
    ends = {file: [json.loads(line)["id"] for line in (tmp_path / "job" / file).read_text().split("\n") if line] for file in ("data/train.jsonl", "rejected.jsonl", "pending.jsonl")}  # fmt: skip
    ways = {file: {WAYS[int(name.split("-")[1][1:])] for name in names} for file, names in ends.items()}
    assert ways == {"data/train.jsonl": {*READ, *OUTER}, "rejected.jsonl": {*REJECTED}, "pending.jsonl": {*UNREAD}}
    assert summary["rejected"] == Counter(reason for _, reason in REJECTED.values())
    assert summary["pending"] == {"no answer: unreadable answer": len(UNREAD)}
    assert 0 < summary["cost"]["tokens_out"] < 10**6


@pytest.mark.parametrize("line", ["", "{", "[]", "7", '{"custom_id": "KEY"}', '{"custom_id": "KEY", "response": 5}', '{"custom_id": "KEY", "response": {"status_code": 200}}', '{"custom_id": "KEY", "response": {"status_code": 200, "body": {"choices": [5]}}}', '{"custom_id": ["KEY"]}'])  # fmt: skip
def test_each_odd_line_of_a_batch_is_no_answer(tmp_path, monkeypatch, line):
    """The other requests of the batch have theirs."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-unused")

    class OddBatch(Standin):
        def answered(self, request):
            whole = super().answered(request)
            return whole if "rule number 0." not in json.dumps(request) else json.loads('"LINE"')

        def run_batch(self, name, source):
            batch = super().run_batch(name, source)
            keys = [json.loads(each)["custom_id"] for each in self.files[source].decode().splitlines() if "rule number 0." in each]
            self.files[f"out-{name}"] = self.files[f"out-{name}"].replace(b'"LINE"', line.replace("KEY", keys[0]).encode())
            return batch

    async def served():
        server = await serve(OddBatch(PAIRS, 0, 0, None))
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        journal = Journal(tmp_path / "journal")
        bodies = [prompts.pair_request(prompts.Task("t", rule(i), "flask"), prompts.Job("m", 3)) for i in range(3)]
        async with contextlib.aclosing(Writer(journal, WriterOptions(url, batch=True, poll_s=0.01))) as writer:
            failed = await writer.ask(bodies, lambda: None)
        journal.close()
        server.close()
        return list(failed), [content_key(body) for body in bodies], list(journal.answers)

    failed, keys, answered = asyncio.run(served())
    assert failed == keys[:1] and sorted(answered) == sorted(keys[1:])
