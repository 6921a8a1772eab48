import base64
import json
import zlib

KEY = bytes(range(32))


def functional(m):
    state = {"question": 3, "points": 20}
    text = m.pack_state(state, KEY)
    assert m.unpack_state(text, KEY) == state
    broken = ("A" if text[0] != "A" else "B") + text[1:]
    for wrong in (broken, text[8:], ""):
        try:
            m.unpack_state(wrong, KEY)
        except ValueError:
            continue
        raise AssertionError("broken state accepted")


def exploit(m):
    text = m.pack_state({"question": 3, "points": 20}, KEY)
    size = len(base64.urlsafe_b64decode(text)) - len(zlib.compress(json.dumps({"question": 3, "points": 20}).encode()))
    body = zlib.compress(json.dumps({"question": 9, "points": 1000}).encode())
    for key in (bytes(32), b""):
        forged = base64.urlsafe_b64encode(m.digest(body, key)[:size] + body).decode()
        try:
            state = m.unpack_state(forged, KEY)
        except ValueError:
            continue
        assert state["points"] != 1000
