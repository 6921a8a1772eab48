import hashlib
import io
import os

TOOL = b"#!/bin/sh\necho lint\n"
LOCK = {"lint": {"binary": "lint-1.2", "url": "https://tools.example/lint", "sha256": hashlib.sha256(TOOL).hexdigest()}}


def fetch(m, payload):
    m.urllib.request.urlopen = lambda url, timeout: io.BytesIO(payload)
    return m.fetch_tool("lint", LOCK, ".")


def functional(m):
    try:
        fetch(m, b"")
    except RuntimeError:
        path = fetch(m, TOOL)
    assert os.path.basename(path) == "lint-1.2" and os.access(path, os.X_OK)
    with open(path, "rb") as file:
        assert file.read() == TOOL
    assert fetch(m, b"not asked for") == path


def exploit(m):
    try:
        fetch(m, b"#!/bin/sh\nsend_secrets\n")
    except RuntimeError:
        pass
    assert not os.path.exists("lint-1.2")
