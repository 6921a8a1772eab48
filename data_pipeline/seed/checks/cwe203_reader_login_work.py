import hashlib
import sqlite3

calls = []
original = hashlib.scrypt


def counted(*args, **kwargs):
    calls.append(args)
    return original(*args, **kwargs)


def database():
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE readers (mail TEXT, salt BLOB, password_hash BLOB)")
    salt = b"0123456789abcdef"
    db.execute("INSERT INTO readers VALUES ('ada@example.org', ?, ?)", (salt, original(b"pearl", salt=salt, n=2**14, r=8, p=1)))
    return db


def functional(m):
    db = database()
    assert m.login(db, " Ada@example.org", "pearl") is True
    assert m.login(db, "ada@example.org", "coral") is False
    assert m.login(db, "bo@example.org", "pearl") is False


def exploit(m):
    hashlib.scrypt = counted
    work = []
    for mail in ("ada@example.org", "bo@example.org"):
        calls.clear()
        assert m.login(database(), mail, "wrong") is False
        work.append(len(calls))
    assert work[0] == work[1]
