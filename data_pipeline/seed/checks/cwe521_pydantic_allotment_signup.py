def refused(m, name, password):
    try:
        m.sign_up({"name": name, "password": password}, lambda *form: form)
    except ValueError:
        return True
    return False


def functional(m):
    password = "compost heap by the fence"
    assert m.sign_up({"name": "ann7", "password": password}, lambda *form: form) == ("ann7", password)
    assert refused(m, "ann7", "Ann7 likes compost heaps")
    assert refused(m, "Ann Lee", password) and refused(m, "ann7", "")


def exploit(m):
    for password in ("rose", "1984", "qwerty", "abc123", "password"):
        assert refused(m, "ann7", password)
