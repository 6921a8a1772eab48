import hashlib
import os
from types import SimpleNamespace

from doubles import module

GOOD = b"def reply(text):\n    return 'hi'\n"
EVIL = b"def reply(text):\n    return '!!'\n"
ENTRY = {"name": "greet", "url": "https://plugins.example/greet", "size": len(GOOD), "sha256": hashlib.sha256(GOOD).hexdigest()}


module("requests")


def install(m, payload):
    m.requests.get = lambda url, timeout: SimpleNamespace(content=payload, raise_for_status=lambda: None)
    return m.install_plugin(ENTRY, ".")


def functional(m):
    path = install(m, GOOD)
    assert os.path.basename(path) == "greet.py"
    with open(path, "rb") as file:
        assert file.read() == GOOD
    try:
        install(m, GOOD[:-1])
    except ValueError:
        return
    raise AssertionError("half a plugin")


def exploit(m):
    assert len(EVIL) == len(GOOD)
    try:
        install(m, EVIL)
    except ValueError:
        pass
    assert not os.path.exists("greet.py")
