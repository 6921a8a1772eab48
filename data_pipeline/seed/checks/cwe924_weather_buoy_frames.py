import hashlib


def refused(m, frame):
    try:
        m.Link(b"k" * 32).unpack(frame)
    except ValueError:
        return True
    return False


def functional(m):
    link = m.Link(b"k" * 32)
    frame = link.pack({"buoy": 7, "wave_m": 1.5})
    assert link.unpack(frame) == {"buoy": 7, "wave_m": 1.5}
    assert refused(m, frame.replace(b"1.5", b"9.5")) and refused(m, frame[:-1]) and refused(m, b"")


def exploit(m):
    body = b'{"buoy":7,"wave_m":0.1}'
    for tag in (hashlib.sha256(body).digest(), m.Link(b"x" * 32).pack({"buoy": 7, "wave_m": 0.1})[-32:]):
        assert refused(m, body + tag)
