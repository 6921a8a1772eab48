import sqlite3


def functional(m):
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE badges (badge TEXT PRIMARY KEY, level INT)")
    db.execute("INSERT INTO badges VALUES ('B1', 3)")
    assert m.may_open(db, "B1", 3) is True
    assert m.may_open(db, "B1", 4) is False
    assert m.may_open(db, "B2", 1) is False


def exploit(m):
    assert m.may_open(sqlite3.connect(":memory:"), "B2", 9) is False
