"""A local server that speaks enough of OpenAI's API to stand in for a model that writes: it answers from finished pairs, and fails on purpose.

Every completion that it delivers goes into a ledger, so that tests can tell what was paid for twice.
"""

import argparse
import asyncio
import json
import random
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from data_pipeline.distill.journal import content_key
from data_pipeline.distill.prompts import PAIR_PARTS, REPAIR_PARTS, label
from data_pipeline.pairs import Drops, Pair, read
from foundation.commands import whole
from foundation.files import Json, write_text

FAULTS = ("429", "500", "reset", "timeout", "truncated", "refused")


class Standin:
    """`fault_share` of the requests fail, evenly by kind; `ledger` gets a line {key, kind} for each completion delivered."""

    def __init__(self, pairs: list[Pair], fault_share: float, seed: int, ledger: Path | None, hang_s: float = 30.0):
        self.pairs, self.fault_share, self.hang_s = pairs, fault_share, hang_s
        self.draw = random.Random(seed)
        self.ledger = open(ledger, "a") if ledger else None  # noqa: SIM115
        self.which: dict[str, int] = {}  # request -> its pair
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, Json] = {}
        self.batched: list[Json] = []  # every request that a batch answered
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/files", self.upload, methods=["POST"]),
                Route("/v1/files/{name}/content", self.download),
                Route("/v1/batches", self.create, methods=["POST"]),
                Route("/v1/batches", self.listing),
                Route("/v1/batches/{name}", self.retrieve),
            ]
        )

    async def chat(self, asked: Request) -> Response:
        fault = self.draw.choice(FAULTS) if self.draw.random() < self.fault_share else ""
        if fault == "timeout":
            await asyncio.sleep(self.hang_s)
        if fault in ("timeout", "reset"):
            return StreamingResponse(_cut())
        if fault in ("429", "500"):
            error = {"message": "as asked", "type": fault, "code": None, "param": None}
            return JSONResponse({"error": error}, int(fault), {"Retry-After": "0.05"} if fault == "429" else None)
        request = await asked.json()
        reply = self.completion(request, fault)
        if self.ledger:
            print(json.dumps({"key": content_key(request), "kind": fault or "whole"}), file=self.ledger, flush=True)
        return JSONResponse(reply)

    async def upload(self, asked: Request) -> Response:
        form, name = await asked.body(), f"file-{uuid.uuid4().hex}"
        self.files[name] = form[form.index(b'{"custom_id"') : form.rindex(b"}") + 1]
        file = {"object": "file", "bytes": 0, "created_at": 0, "filename": "requests.jsonl", "purpose": "batch", "status": "processed"}
        return JSONResponse({"id": name} | file)

    async def download(self, asked: Request) -> Response:
        return Response(self.files[asked.path_params["name"]], media_type="application/json")

    async def create(self, asked: Request) -> Response:
        name, request = f"batch-{uuid.uuid4().hex}", await asked.json()
        self.batches[name] = self.run_batch(name, request["input_file_id"]) | {"metadata": request.get("metadata")}
        return JSONResponse(self.batches[name] | {"status": "in_progress"})

    async def listing(self, asked: Request) -> Response:
        return JSONResponse({"object": "list", "data": [*self.batches.values()], "has_more": False})

    async def retrieve(self, asked: Request) -> Response:
        return JSONResponse(self.batches[asked.path_params["name"]])

    def run_batch(self, name: str, source: str) -> Json:
        requests = [json.loads(line) for line in self.files[source].decode().splitlines()]
        self.batched += [request["body"] for request in requests]
        self.files[f"out-{name}"] = "\n".join(json.dumps(self.answered(request)) for request in requests).encode()
        batch = {"id": name, "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": source, "completion_window": "24h"}
        return batch | {"status": "completed", "output_file_id": f"out-{name}", "error_file_id": None, "created_at": 0}

    def answered(self, request: Json) -> Json:
        """A line of a batch's output."""
        response = {"status_code": 200, "request_id": "", "body": self.completion(request["body"], "")}
        return {"id": request["custom_id"], "custom_id": request["custom_id"], "error": None, "response": response}

    def completion(self, request: Json, fault: str) -> Json:
        prompt = request["messages"][-1]["content"]
        asked = "\n" + label("vulnerable") in prompt or '"vulnerable"' in json.dumps(request)
        pair = self.pairs[self.which.setdefault(content_key(request), len(self.which)) % len(self.pairs)]
        if not asked:  # a repair of code that an earlier answer held
            pair = next((p for p in self.pairs if p.chosen.strip() in prompt), pair)
        sentences = pair.reasoning.split(". ")
        found = {
            "instruction": pair.instruction,
            "vulnerable": pair.rejected,
            "why_vulnerable": ". ".join(sentences[1:-1]).rstrip(".") + ".",
            "secure": pair.chosen,
            "why_secure": sentences[-1],
        }
        parts = PAIR_PARTS if asked else REPAIR_PARTS
        if "response_format" in request:
            text = json.dumps({part: found[part] for part in parts})
        else:
            code = ("vulnerable", "secure")
            text = "\n\n".join(f"{label(p)}\n" + (f"```python\n{found[p]}\n```" if p in code else found[p]) for p in parts)
        content = {"truncated": text[: len(text) // 2], "refused": None}.get(fault, text)
        refusal = "I can't help with that." if fault == "refused" else None
        message = {"role": "assistant", "content": content, "refusal": refusal}
        finish = "length" if fault == "truncated" else "stop"
        sizes = len(prompt), len(content or "")
        usage = {"prompt_tokens": sizes[0] // 4, "completion_tokens": sizes[1] // 4, "total_tokens": sum(sizes) // 4}
        choices = [{"index": 0, "finish_reason": finish, "logprobs": None, "message": message}]
        reply = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": 0, "model": request["model"]}
        return reply | {"choices": choices, "usage": usage}


async def _cut() -> AsyncIterator[bytes]:
    """An answer that breaks off: the server closes the connection on an error in the midst of it."""
    yield b"{"
    raise ConnectionResetError("as asked")


async def serve(standin: Standin, port: int = 0) -> asyncio.Server:
    """Listen on a port of the loopback interface; 0 picks a free one."""
    config = uvicorn.Config(standin.app, lifespan="off", log_config=None, log_level="critical", access_log=False)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: H11Protocol(config, state, {}), "127.0.0.1", port, backlog=256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", help="a file of pairs to answer from")
    parser.add_argument("--port-file", type=Path, help="write the port here once listening")
    parser.add_argument("--faults", type=float, default=0.0, help="share of the requests that fail (default: 0)")
    parser.add_argument("--hang", type=float, default=30.0, help="seconds that a hanging request hangs (default: 30)")
    parser.add_argument("--ledger", type=Path, help="append a line for each completion delivered")
    parser.add_argument("--seed", type=whole(0, 2**32 - 1), default=0)
    args = parser.parse_args()

    async def run() -> None:
        standin = Standin(list(read(args.pairs, Drops())), args.faults, args.seed, args.ledger, args.hang)
        server = await serve(standin)
        port = server.sockets[0].getsockname()[1]
        print(f"listening on http://127.0.0.1:{port}/v1", flush=True)
        if args.port_file:
            write_text(args.port_file, str(port))
        await server.serve_forever()

    asyncio.run(run())


if __name__ == "__main__":
    main()
