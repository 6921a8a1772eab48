import sqlite3


def database():
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE members (id INTEGER PRIMARY KEY, name TEXT, mail TEXT)")
    return db


def functional(m):
    db = database()
    assert m.register(db, " Ada ", "ada@example.org") == 1
    for name in ("ADA", "admin", ""):
        try:
            m.register(db, name, "x@example.org")
        except ValueError:
            continue
        raise AssertionError(name)


def exploit(m):
    db = database()
    for name in ("Admin", "MODERATOR", "Support"):
        try:
            m.register(db, name, "eve@example.org")
        except ValueError:
            continue
        raise AssertionError(name)
