def functional(m):
    roster = bytearray()
    m.enrol(roster, "chair", 1)
    m.enrol(roster, "bo", 7)
    assert m.role_of(roster, "chair") == 1 and m.role_of(roster, "bo") == 7 and m.role_of(roster, "eve") is None
    for name in ("bo", "", "x" * 17):
        try:
            m.enrol(roster, name, 2)
        except ValueError:
            continue
        raise AssertionError(name)


def exploit(m):
    roster = bytearray()
    m.enrol(roster, "chair", 1)
    try:
        m.enrol(roster, "chair\0x", 9)
    except ValueError:
        pass
    assert m.role_of(roster, "chair") == 1
