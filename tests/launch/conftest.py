"""Stand-ins for gcloud, kubectl, sbatch, ...: they write down how they were called and answer as a test tells them to."""

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.helpers.launch import NOT_FOUND, Fakes, node
from tests.helpers.paths import REPO


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    assert os.path.isdir(REPO / "launch")
    return Fakes(tmp_path)


@pytest.fixture
def cloud(fakes):
    """No TPU at first; then one of four workers on which everything goes well."""
    fakes.answer("tpu-vm describe", NOT_FOUND, code=1, times=1)
    fakes.answer("tpu-vm describe", node())
    fakes.answer("resources describe", NOT_FOUND, code=1)
    fakes.answer("worker.sh setup", "worker.sh: ready\n" * 4)
    fakes.answer("worker.sh start", "worker.sh: started\n" * 4)
    fakes.answer("worker.sh state", "worker.sh: none\n")
    fakes.answer("worker.sh follow", "step 1 loss 3\nworker.sh: over 0\n")
    return fakes


@pytest.fixture
def hub():
    """A stand-in for the hub, which says of "gated" that it is gated and knows nothing else; its address."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            gated = "gated" in self.path
            self.send_response(403 if gated else 404)
            self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
