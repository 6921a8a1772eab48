import json
import zlib


def frame(text):
    return zlib.compress(json.dumps({"room": "lounge", "text": text}).encode())


def functional(m):
    assert m.decode_frame(frame("hello ä")) == ("lounge", "hello ä")
    try:
        m.decode_frame(b"")
    except ValueError:
        return
    raise AssertionError("an empty frame")


def exploit(m):
    try:
        m.decode_frame(frame("x" * 20_000_000))
    except ValueError:
        return
    raise AssertionError("twenty kilobytes became twenty megabytes")
