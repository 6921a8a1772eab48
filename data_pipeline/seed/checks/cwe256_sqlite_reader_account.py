import sqlite3


def database():
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE readers (card TEXT PRIMARY KEY, salt BLOB, password BLOB)")
    return db


def functional(m):
    db = database()
    m.create_reader(db, "R-1", "correct horse")
    assert m.check_reader(db, "R-1", "correct horse")
    assert not m.check_reader(db, "R-1", "wrong") and not m.check_reader(db, "R-2", "correct horse")


def exploit(m):
    db = database()
    m.create_reader(db, "R-1", "correct horse")
    assert not any("correct horse" in line for line in db.iterdump())
    (row,) = db.execute("SELECT * FROM readers")
    assert b"correct horse" not in row
