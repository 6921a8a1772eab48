import sqlite3
import types
from pathlib import Path


def posts():
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE posts (id INTEGER PRIMARY KEY, text TEXT)")
    db.execute("INSERT INTO posts VALUES (1, 'hello')")
    return db


def functional(m):
    db = posts()
    assert m.delete_post(db, {"id": 5, "role": "moderator"}, 1) is True
    assert m.delete_post(db, {"id": 5, "role": "moderator"}, 1) is False


def exploit(m):
    """Under `python -O`."""
    optimized = types.ModuleType("optimized")
    exec(compile(Path(m.__file__).read_text(), "pair", "exec", optimize=1), vars(optimized))
    db = posts()
    try:
        optimized.delete_post(db, {"id": 6, "role": "member"}, 1)
    except PermissionError:
        pass
    assert db.execute("SELECT count(*) FROM posts").fetchone() == (1,)
