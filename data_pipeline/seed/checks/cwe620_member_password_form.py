import hashlib
import sqlite3


def database():
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE members (id INTEGER PRIMARY KEY, salt BLOB, password BLOB)")
    db.execute("INSERT INTO members VALUES (7, ?, ?)", (b"salt", scrypt("correct horse", b"salt")))
    return db


def scrypt(password, salt):
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1)


def valid(db, password):
    salt, stored = db.execute("SELECT salt, password FROM members WHERE id = 7").fetchone()
    return stored == scrypt(password, salt)


def change(m, db, current, new, again):
    try:
        m.change_password(db, 7, {"current": current, "new": new, "again": again})
    except ValueError:
        return False
    return True


def functional(m):
    db = database()
    assert change(m, db, "correct horse", "battery staple", "battery staple")
    assert valid(db, "battery staple") and not valid(db, "correct horse")
    assert not change(m, db, "battery staple", "short", "short")
    assert not change(m, db, "battery staple", "paper clip box", "paper clip box ")


def exploit(m):
    db = database()
    assert not change(m, db, "guess", "battery staple", "battery staple")
    assert valid(db, "correct horse")
