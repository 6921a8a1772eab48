import struct


def functional(m):
    data = m.say(7, "hello") + m.say(8, "bye")
    assert list(m.frames(data)) == [(1, 7, b"hello"), (1, 8, b"bye")]
    for text in ("", "x" * 501):
        try:
            m.say(7, text)
        except ValueError:
            continue
        raise AssertionError(text)


def exploit(m):
    forged = struct.pack("!BIH", 2, 1, 3) + b"bob"
    text = "é" * len(forged) + forged.decode("ascii")
    assert list(m.frames(m.say(7, text))) == [(1, 7, text.encode())]
