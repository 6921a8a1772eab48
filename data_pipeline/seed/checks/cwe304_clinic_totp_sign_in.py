import hashlib


def user(**more):
    digest = hashlib.scrypt(b"correct horse", salt=b"salt", n=2**14, r=8, p=1)
    return {"salt": b"salt", "password": digest} | more


def functional(m):
    key = b"12345678901234567890"
    assert m.sign_in(user(totp=key), "correct horse", "287082", 59) is True
    assert m.sign_in(user(totp=key), "correct horse", "287083", 59) is False
    assert m.sign_in(user(totp=key), "wrong", "287082", 59) is False
    assert m.sign_in(user(), "correct horse", "", 59) is True


def exploit(m):
    assert m.sign_in(user(totp=b"12345678901234567890"), "correct horse", "", 59) is False
