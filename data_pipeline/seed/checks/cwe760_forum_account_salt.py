def functional(m):
    m.ROUNDS = 1000
    stored = m.hash_password("ada", "correct horse")
    assert m.password_matches("correct horse", stored) and not m.password_matches("wrong", stored)
    assert m.hash_password("bo", "correct horse") != stored
    try:
        m.hash_password("ada", "Ada")
    except ValueError:
        return
    raise AssertionError("the name was accepted as password")


def exploit(m):
    m.ROUNDS = 1000
    assert m.hash_password("admin", "letmein") != m.hash_password("admin", "letmein")
