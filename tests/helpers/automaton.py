"""A model made by hand, behind an endpoint: it is known at which token its programs turn good or bad."""

import asyncio
import contextlib
import random
import threading
import time
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from data_pipeline import tokenizer
from data_pipeline.distill.journal import content_key
from data_pipeline.pairs import Pair

CODE = 'import hashlib\n\n\ndef {name}(data):\n    """Make it {word}."""\n    size = len(data)\n    return hashlib.{kind}(data).hexdigest(), size'
WORDS = {"chosen": "safe", "rejected": "quick"}
KINDS = {"chosen": "sha256", "rejected": "md5"}  # Bandit minds the second


def pair(name="digest"):
    sides = {side: CODE.format(name=name, word=WORDS[side], kind=KINDS[side]) for side in WORDS}
    return Pair(id=name, instruction=f"Write {name}(data), a hash.", reasoning="Hashes age.", cwe="CWE-327", **sides)


def small_tokenizer(directory):
    tok = tokenizer.train([CODE, "### Response:\n```python\n", "Write digest(data), a hash."], 290)
    tok.save(directory)
    return tok


@dataclass
class Automaton:
    """Ends every program well or badly. What it hangs on is where the sides first differ ("word"), or where they differ then ("kind").

    Attributes:
      clumsy: share of the samples that the limit cuts off.
      vocab, longest: what a prompt's ids lie below, and how many it may have.
      short: how many of the first answers lack a sample.
      asked: the key of each request answered, in order.
    """

    tok: tokenizer.Tokenizer
    hangs_on: str = "kind"
    clumsy: float = 0.04
    wait_s: float = 0.0
    vocab: int = 2**31
    longest: int = 2**31
    short: int = 0
    asked: list[str] = field(default_factory=list)
    bodies: list[dict] = field(default_factory=list)

    def chance(self, code):
        """That a program which begins like this ends well."""
        _, found, rest = code.partition("Make it " if self.hangs_on == "word" else "hashlib.")
        if not found or not rest:
            return 0.5
        return float(rest[0] == "s")

    def continuation(self, code, draw):
        well = draw.random() < self.chance(code)
        name = code.partition("def ")[2].partition("(")[0] or "digest"
        kinds = ["sha256"] if well else ["md5"]
        whole = [CODE.format(name=name, word=word, kind=kind) for word in ("safe", "quick") for kind in (*kinds, "sha256", "md5")]
        rest = next((text[len(code) :] for text in whole if text.startswith(code)), "")
        if draw.random() < self.clumsy:
            return rest[: len(rest) // 2], "length"
        return rest + "\n```", "stop"

    async def answer(self, asked):
        body = await asked.json()
        await asyncio.sleep(self.wait_s)
        for refused, message in (
            (max(body["prompt"]) >= self.vocab, f"prompt: tokens lie in 0 .. {self.vocab - 1}"),
            (len(body["prompt"]) > self.longest, "this model's maximum context length is exceeded"),
        ):
            if refused:
                return JSONResponse({"error": {"message": message, "code": None, "param": "prompt", "type": "invalid_request_error"}}, 400)
        self.asked.append(content_key(body))
        self.bodies.append(body)
        code = self.tok.backend.decode(body["prompt"]).rpartition("```python\n")[2]
        choices = []
        for index in range(body["n"]):
            text, reason = self.continuation(code, random.Random(f"{body['seed']} {index}"))
            choices.append({"index": index, "text": text, "finish_reason": reason, "logprobs": None})
        if self.short:
            self.short -= 1
            choices.pop()
        return JSONResponse({"id": "x", "object": "text_completion", "created": 0, "model": "m", "choices": choices})

    @contextlib.contextmanager
    def serve(self):
        """Its address."""
        app = Starlette(routes=[Route("/v1/completions", self.answer, methods=["POST"])])
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join(20)
