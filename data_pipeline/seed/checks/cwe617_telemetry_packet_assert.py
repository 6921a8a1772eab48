import struct

GOOD = struct.pack(">IHH", 9, 3300, 250)


def functional(m):
    assert m.decode_packet(GOOD) == (9, 3.3, 0.25)
    assert m.decode_all([GOOD, GOOD]) == ([(9, 3.3, 0.25)] * 2, 0)


def exploit(m):
    try:
        readings, rejected = m.decode_all([GOOD, b"short", GOOD + b"x", GOOD])
    except AssertionError:
        raise AssertionError("one packet ends the whole batch") from None
    assert len(readings) == 2 and rejected == 2
