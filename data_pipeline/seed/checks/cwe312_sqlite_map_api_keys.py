import sqlite3


def database():
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE api_keys (key TEXT PRIMARY KEY, customer TEXT)")
    return db


def functional(m):
    db = database()
    first, second = m.issue_key(db, "ferry line"), m.issue_key(db, "hiking club")
    assert first != second and m.customer_of(db, first) == "ferry line" and m.customer_of(db, f" {second}\n") == "hiking club"
    assert m.customer_of(db, first[:-1]) is None


def exploit(m):
    db = database()
    key = m.issue_key(db, "ferry line")
    assert key not in "".join(db.iterdump())
