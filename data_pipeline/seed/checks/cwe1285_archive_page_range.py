STORE = b"ANN'S LETTER" + b"BOB'S CONTRACT"
INDEX = {"ann": (0, 12), "bob": (12, 14)}


def functional(m):
    assert m.read_range(STORE, INDEX, "ann", 0, 12) == b"ANN'S LETTER"
    assert m.read_range(STORE, INDEX, "bob", 6, 8) == b"CONTRACT"
    assert m.read_range(STORE, INDEX, "bob", 6, 100) == b"CONTRACT"
    for arguments, error in ((("cleo", 0, 1), LookupError), (("bob", -3, 3), ValueError), (("bob", 0, -1), ValueError)):
        try:
            m.read_range(STORE, INDEX, *arguments)
        except error:
            continue
        raise AssertionError(arguments)


def exploit(m):
    for offset, length in ((0, 26), (11, 5), (12, 14), (20, 4)):
        try:
            data = m.read_range(STORE, INDEX, "ann", offset, length)
        except ValueError:
            continue
        assert data == b"ANN'S LETTER"[offset : offset + length]
