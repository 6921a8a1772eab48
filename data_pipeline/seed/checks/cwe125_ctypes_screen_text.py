def functional(m):
    screen = m.Screen(b"Gate 4 closed", b"7731")
    assert m.part(screen, 5, 8) == "4 closed"
    assert m.part(screen, 12, 4) == "d   "
    assert m.part(screen, 64, 0) == ""
    for start, count in ((-1, 4), (3, -1)):
        try:
            m.part(screen, start, count)
        except ValueError:
            continue
        raise AssertionError((start, count))


def exploit(m):
    screen = m.Screen(b"Gate 4 closed", b"7731")
    for start, count in ((64, 16), (0, 80), (60, 8)):
        try:
            text = m.part(screen, start, count)
        except ValueError:
            continue
        assert "7731" not in text
