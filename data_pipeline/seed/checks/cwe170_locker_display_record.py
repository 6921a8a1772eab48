def shown(record):
    """What a C program prints for the name."""
    return record[1:].split(b"\0")[0].decode()


def functional(m):
    record = m.display_record(3, " Ada ", "123456")
    assert len(record) == 27 and record[0] == 3 and shown(record) == "Ada"
    assert record[17:25] == b"123456\0\0" and int.from_bytes(record[25:], "little") == sum(record[:25])
    for locker, code in ((0, "123456"), (3, "12345")):
        try:
            m.display_record(locker, "Ada", code)
        except ValueError:
            continue
        raise AssertionError(code)


def exploit(m):
    for length in (15, 16, 17, 40):
        assert "123456" not in shown(m.display_record(3, "x" * length, "123456"))
