import base64
import json
import os
import zlib

os.environ["QUIZ_KEY"] = "7c1f0e5b9a2d4c68"


def refused(m, text):
    try:
        m.unpack_state(text)
    except ValueError:
        return True
    return False


def functional(m):
    state = {"question": 3, "points": 20}
    text = m.pack_state(state)
    assert m.unpack_state(text) == state
    assert refused(m, ("A" if text[0] != "A" else "B") + text[1:])
    assert refused(m, text[8:]) and refused(m, "")


def exploit(m):
    body = zlib.compress(json.dumps({"question": 9, "points": 1000}).encode())
    for mark in (b"", zlib.crc32(body).to_bytes(4, "big"), bytes(32)):
        assert refused(m, base64.urlsafe_b64encode(mark + body).decode())
