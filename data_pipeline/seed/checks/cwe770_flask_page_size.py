import sqlite3
from types import SimpleNamespace

from doubles import flask


class Args(dict):
    def get(self, key, default, type):
        try:
            return type(self[key])
        except (KeyError, ValueError):
            return default


request = SimpleNamespace()
flask(request, jsonify=lambda rows: rows)


def page(m, **args):
    with sqlite3.connect("chat.db") as db:
        db.execute("CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY, author TEXT, body TEXT)")
        db.execute("DELETE FROM messages")
        db.executemany("INSERT INTO messages VALUES (?, 'ada', 'hi')", [(number,) for number in range(1, 5001)])
    request.args = Args(args)
    return m.list_messages()


def functional(m):
    assert [row["id"] for row in page(m, limit="3")] == [5000, 4999, 4998]
    assert len(page(m)) == len(page(m, limit="many")) == 25


def exploit(m):
    assert len(page(m, limit="1000000")) <= 1000 and len(page(m, limit="-1")) <= 1000
