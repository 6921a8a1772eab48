import sqlite3


def forum():
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE posts (id INTEGER PRIMARY KEY, author TEXT, title TEXT)")
    db.executemany("INSERT INTO posts VALUES (?, ?, ?)", [(1, "ann", "Hello"), (2, "ann", "Bye"), (3, "bob", "Hm")])
    return db


def functional(m):
    db = forum()
    assert m.delete_post(db, {"name": "ann", "role": "member"}, 1) == "Hello"
    assert m.delete_post(db, {"name": "mo", "role": "moderator"}, 2) == "Bye"
    assert m.delete_post(db, {"name": "ad", "role": "admin"}, 3) == "Hm"
    try:
        m.delete_post(db, {"name": "ad", "role": "admin"}, 3)
    except LookupError:
        return
    raise AssertionError("deleted twice")


def exploit(m):
    db = forum()
    try:
        m.delete_post(db, {"name": "eve", "role": "member"}, 1)
    except PermissionError:
        pass
    assert db.execute("SELECT count(*) FROM posts").fetchone() == (3,)
