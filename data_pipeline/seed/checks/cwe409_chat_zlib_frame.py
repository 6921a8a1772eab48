import json
import zlib


def frame(text):
    return zlib.compress(json.dumps({"room": "lobby", "text": text}).encode())


def functional(m):
    assert m.decode_frame(frame("hello")) == ("lobby", "hello")
    try:
        m.decode_frame(b"")
    except ValueError:
        return
    raise AssertionError("empty frame accepted")


def exploit(m):
    bomb = frame("x" * 20_000_000)
    assert len(bomb) < 64 * 1024
    try:
        _, text = m.decode_frame(bomb)
    except ValueError:
        return
    assert len(text) <= 64 * 1024
