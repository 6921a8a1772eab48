def functional(m):
    password = m.first_start("one.json")
    assert m.valid("one.json", password) and not m.valid("one.json", password + "x")
    assert m.first_start("one.json") is None and m.valid("one.json", password)


def exploit(m):
    first, second = m.first_start("one.json"), m.first_start("two.json")
    assert first != second and len(first) >= 10
    assert not m.valid("one.json", "admin")
