"""A hub and a bucket on one small HTTP server: enough of the hub's API for a model's files, and of Cloud Storage's JSON API for tensorstore, which both
count what is asked for. As a program: `python -m tests.helpers.web_store MODEL OUT.npz` reads a model as one of several processes, whose name in the count
is its token."""

import hashlib
import json
import sys
import threading
import urllib.parse
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HUB_ID, COMMIT = "owner/tiny", "c0ffee"


class Web:
    """What the server holds, and what was asked of it."""

    def __init__(self):
        self.hub: dict[str, bytes] = {}
        self.bucket: dict[str, bytes] = {}
        self.from_hub: list[str] = []  # each file as often as it was begun
        self.read = Counter[str]()  # bytes of weights, by who asks
        self.broken: set[str] = set()  # what the hub gives damaged
        self.missing: set[str] = set()  # what it says it has, and doesn't give

    def answer(self, method: str, url: str, headers, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        path, _, query = url.partition("?")
        asked = urllib.parse.parse_qs(query)
        parts = [urllib.parse.unquote(part) for part in path.split("/")[1:]]
        if method == "POST":
            self.bucket[asked["name"][0]] = body
            return 200, json.dumps(self.facts(asked["name"][0])).encode(), {}
        if parts[:2] == ["api", "models"]:
            siblings = [{"rfilename": name, "size": len(data)} | self.lfs(name, data) for name, data in self.hub.items()]
            return 200, json.dumps({"id": HUB_ID, "modelId": HUB_ID, "sha": COMMIT, "siblings": siblings}).encode(), {}
        if parts[:5] == ["storage", "v1", "b", "bkt", "o"]:
            if len(parts) == 5:
                prefix = asked.get("prefix", [""])[0]
                return 200, json.dumps({"items": [self.facts(name) for name in self.bucket if name.startswith(prefix)]}).encode(), {}
            data, name = self.bucket.get(parts[5]), parts[5]
        elif "resolve" not in parts:  # huggingface_hub asks about itself
            return 404, b"", {}
        else:
            name = parts[-1]
            data = None if name in self.missing else self.hub.get(name)
            if headers.get("Range", "bytes=0-").startswith("bytes=0-"):
                self.from_hub.append(name)
            if data and name in self.broken:
                data = bytes([data[0] ^ 1]) + data[1:]
        if data is None:
            return 404, b"", {}
        first, _, last = (headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
        found = data[int(first) : int(last) + 1 if last else None]
        if name.endswith(".safetensors"):
            self.read[headers.get("Authorization", "").removeprefix("Bearer ")] += len(found)
        code = 206 if headers.get("Range") else 200
        span = {"Content-Range": f"bytes {first}-{int(first) + len(found) - 1}/{len(data)}"} if code == 206 else {}
        return code, found, span | {"x-goog-generation": "1"}

    def facts(self, name: str) -> dict:
        return {"name": name, "bucket": "bkt", "generation": "1", "metageneration": "1", "size": str(len(self.bucket[name]))}

    def lfs(self, name: str, data: bytes) -> dict:
        return (
            {"lfs": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 100}}
            if name.endswith(".safetensors")
            else {}
        )

    def hold(self, directory: Path, prefix: str | None = None) -> None:
        """Put a directory's files on the hub, or into the bucket."""
        for file in directory.iterdir():
            if prefix is None:
                self.hub[file.name] = file.read_bytes()
            else:
                self.bucket[f"{prefix}/{file.name}"] = file.read_bytes()


@contextmanager
def served(web: Web):
    """Its address."""

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            code, content, headers = web.answer(self.command, self.path, self.headers, body)
            self.send_response(code)
            for key, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self):
            self.do_GET()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def main(path: str, out: str) -> None:
    import jax
    import numpy as np
    from flax.traverse_util import flatten_dict
    from jax.experimental import multihost_utils

    from lpo_jax.config import MeshConfig
    from lpo_jax.model import hf
    from lpo_jax.model.decoder import Model
    from lpo_jax.sharding import make_mesh
    from lpo_jax.train import distributed
    from lpo_jax.train.state import param_shardings

    distributed.initialize()
    directory = hf.locate(path)
    model = Model(hf.read_config(directory), param_dtype="float32")
    params = hf.read_params(directory, model, param_shardings(model, make_mesh(MeshConfig(1, fsdp=4, tensor=2))))
    whole = multihost_utils.process_allgather(params, tiled=True)
    if jax.process_index() == 0:
        np.savez(out, **flatten_dict(whole, sep="."))
    print(f"process {jax.process_index()} holds {sum(s.data.nbytes for x in jax.tree.leaves(params) for s in x.addressable_shards)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
