import hashlib
import sqlite3


def database(m):
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE members (email TEXT PRIMARY KEY, salt BLOB, hash BLOB)")
    m.add_member(db, "ada@example.org", "letmein")
    return db


def functional(m):
    db = database(m)
    assert m.check_member(db, "ada@example.org", "letmein") is True
    assert m.check_member(db, "ada@example.org", "wrong") is False and m.check_member(db, "bo@example.org", "letmein") is False


def exploit(m):
    # What a single round of a fast hash makes of each guess must not be what is stored.
    salt, stored = database(m).execute("SELECT salt, hash FROM members").fetchone()
    for name in ("md5", "sha1", "sha256", "sha512"):
        for data in (salt + b"letmein", b"letmein" + salt):
            assert hashlib.new(name, data).digest() != stored
