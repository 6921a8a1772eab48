def functional(m):
    charger = m.Charger(b"bay 1 west side", 16, 1)
    assert m.rename(charger, " Bay 2 ") == "Bay 2"
    assert (charger.label, charger.max_ampere, charger.locked) == (b"Bay 2", 16, 1)
    assert m.rename(charger, "x" * 15) == "x" * 15
    try:
        m.rename(charger, " ")
    except ValueError:
        return
    raise AssertionError("empty label")


def exploit(m):
    charger = m.Charger(b"bay 1", 16, 1)
    try:
        m.rename(charger, "x" * 16 + "\x7f\0\0\0\0\0\0")
    except ValueError:
        pass
    assert (charger.max_ampere, charger.locked) == (16, 1)
