"""A local server that speaks enough of OpenAI's API to stand in for a teacher: it answers from finished pairs, and fails on purpose.

Every completion that it delivers goes into a ledger, so that tests can tell what was paid for twice.
"""

import argparse
import asyncio
import json
import random
import uuid
from pathlib import Path
from typing import Any

from data_pipeline.distill.journal import content_key
from data_pipeline.distill.prompts import PAIR_PARTS, REPAIR_PARTS, label
from data_pipeline.pairs import Drops, Pair, read

FAULTS = ("429", "500", "reset", "timeout", "truncated", "refused")


class Standin:
    """`fault_share` of the requests fail, evenly by kind; `ledger` gets a line {key, kind} for each completion delivered."""

    def __init__(self, pairs: list[Pair], fault_share: float, seed: int, ledger: Path | None, hang_s: float = 30.0):
        self.pairs, self.fault_share, self.hang_s = pairs, fault_share, hang_s
        self.draw = random.Random(seed)
        self.ledger = open(ledger, "a") if ledger else None  # noqa: SIM115
        self.which: dict[str, int] = {}  # request -> its pair
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.batched: list[dict[str, Any]] = []  # every request that a batch answered

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client's requests until it leaves."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ", 2)
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if not await self._answer(method, path.removeprefix("/v1"), body, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client is gone: nobody is left to tell
        finally:
            writer.close()

    async def _answer(self, method: str, path: str, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection stays open."""
        if path == "/chat/completions":
            fault = self.draw.choice(FAULTS) if self.draw.random() < self.fault_share else ""
            if fault == "reset":
                writer.transport.abort()
                return False
            if fault == "timeout":
                await asyncio.sleep(self.hang_s)
                return False
            if fault in ("429", "500"):
                error = {"error": {"message": "as asked", "type": fault, "code": None, "param": None}}
                await _send(writer, int(fault), json.dumps(error), "Retry-After: 0.05\r\n" if fault == "429" else "")
                return True
            request = json.loads(body)
            reply = self.completion(request, fault)
            if self.ledger:
                self.ledger.write(json.dumps({"key": content_key(request), "kind": fault or "whole"}) + "\n")
                self.ledger.flush()
            await _send(writer, 200, json.dumps(reply))
        elif method == "POST" and path == "/files":
            name = f"file-{uuid.uuid4().hex}"
            self.files[name] = body[body.index(b'{"custom_id"') : body.rindex(b"}") + 1]
            await _send(writer, 200, json.dumps(_file(name)))
        elif path.startswith("/files/"):
            await _send(writer, 200, self.files[path.split("/")[2]].decode())
        elif method == "POST" and path == "/batches":
            name = f"batch-{uuid.uuid4().hex}"
            asked = json.loads(body)
            self.batches[name] = self.run_batch(name, asked["input_file_id"]) | {"metadata": asked.get("metadata")}
            await _send(writer, 200, json.dumps(self.batches[name] | {"status": "in_progress"}))
        elif path.startswith("/batches?"):
            found = {"object": "list", "data": list(self.batches.values()), "has_more": False}
            await _send(writer, 200, json.dumps(found))
        elif path.startswith("/batches/"):
            await _send(writer, 200, json.dumps(self.batches[path.split("/")[2]]))
        else:
            await _send(writer, 404, '{"error": {"message": "no such path"}}')
        return True

    def run_batch(self, name: str, source: str) -> dict[str, Any]:
        lines = []
        for line in map(json.loads, self.files[source].decode().splitlines()):
            self.batched.append(line["body"])
            lines.append(json.dumps({"id": line["custom_id"], "custom_id": line["custom_id"], "error": None, "response": {"status_code": 200, "request_id": "", "body": self.completion(line["body"], "")}}))  # fmt: skip
        self.files[f"out-{name}"] = "\n".join(lines).encode()
        return {"id": name, "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": source, "completion_window": "24h",
                "status": "completed", "output_file_id": f"out-{name}", "error_file_id": None, "created_at": 0}  # fmt: skip

    def completion(self, request: dict[str, Any], fault: str) -> dict[str, Any]:
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
        finish: str = "stop"
        content: str | None = text
        if fault == "truncated":
            content, finish = text[: len(text) // 2], "length"
        elif fault == "refused":
            content = None
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": finish,
                    "logprobs": None,
                    "message": {
                        "role": "assistant",
                        "content": content,
                        "refusal": "I can't help with that." if fault == "refused" else None,
                    },
                }
            ],
            "usage": {
                "prompt_tokens": len(prompt) // 4,
                "completion_tokens": len(content or "") // 4,
                "total_tokens": (len(prompt) + len(content or "")) // 4,
            },
        }


def _file(name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "file",
        "bytes": 0,
        "created_at": 0,
        "filename": "requests.jsonl",
        "purpose": "batch",
        "status": "processed",
    }


async def _send(writer: asyncio.StreamWriter, status: int, body: str, more: str = "") -> None:
    data = body.encode()
    writer.write(f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{more}\r\n".encode() + data)
    await writer.drain()


async def serve(standin: Standin, port: int = 0) -> asyncio.Server:
    """Listen on a port of the loopback interface; 0 picks a free one."""
    return await asyncio.start_server(standin.connection, "127.0.0.1", port, backlog=256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", help="a file of pairs to answer from")
    parser.add_argument("--port-file", type=Path, help="write the port here once listening")
    parser.add_argument("--faults", type=float, default=0.0, help="share of the requests that fail (default: 0)")
    parser.add_argument("--hang", type=float, default=30.0, help="seconds that a hanging request hangs (default: 30)")
    parser.add_argument("--ledger", type=Path, help="append a line for each completion delivered")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    async def run() -> None:
        standin = Standin(list(read(args.pairs, Drops())), args.faults, args.seed, args.ledger, args.hang)
        server = await serve(standin)
        port = server.sockets[0].getsockname()[1]
        print(f"listening on http://127.0.0.1:{port}/v1", flush=True)
        if args.port_file:
            args.port_file.with_suffix(".tmp").write_text(str(port))
            args.port_file.with_suffix(".tmp").replace(args.port_file)
        await server.serve_forever()

    asyncio.run(run())


if __name__ == "__main__":
    main()
