import sqlite3
from pathlib import Path


def database():
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE posts (id INTEGER PRIMARY KEY)")
    db.executemany("INSERT INTO posts VALUES (?)", [(1,), (2,)])
    return db


def count(db):
    return db.execute("SELECT COUNT(*) FROM posts").fetchone()[0]


def functional(m):
    db = database()
    moderator = {"id": 3, "role": "moderator"}
    assert m.delete_post(db, moderator, 1) is True and m.delete_post(db, moderator, 1) is False
    try:
        m.delete_post(db, {"id": 4, "role": "member"}, 2)
    except (PermissionError, AssertionError):
        assert count(db) == 1
        return
    raise AssertionError("members don't delete posts")


def exploit(m):
    # As Python compiles it when it is started with -O.
    names = {"__name__": "forum"}
    exec(compile(Path(m.__file__).read_text(encoding="utf-8"), "forum.py", "exec", optimize=1), names)
    db = database()
    try:
        names["delete_post"](db, {"id": 4, "role": "member"}, 2)
    except PermissionError:
        pass
    assert count(db) == 2
