import struct

GOOD = struct.pack(">IHH", 7, 3300, 120)


def functional(m):
    assert m.decode_packet(GOOD) == (7, 3.3, 0.12)
    assert m.decode_all([GOOD, GOOD]) == ([(7, 3.3, 0.12)] * 2, 0)


def exploit(m):
    assert m.decode_all([GOOD, b"", GOOD[:7], GOOD + b"x", GOOD]) == ([(7, 3.3, 0.12)] * 2, 3)
