import sqlite3


def database():
    conn = sqlite3.connect(":memory:")
    conn.execute("CREATE TABLE parts (id INTEGER PRIMARY KEY, name TEXT, stock INTEGER)")
    conn.executemany("INSERT INTO parts (name, stock) VALUES (?, ?)", [("wood screw", 80), ("nail", 5), ("screw driver", 2)])
    conn.execute("CREATE TABLE users (name TEXT, password TEXT)")
    conn.execute("INSERT INTO users VALUES ('ada', 's3cret')")
    return conn


def functional(m):
    found = m.find_parts(database(), "screw")
    assert found == [{"id": 3, "name": "screw driver", "stock": 2}, {"id": 1, "name": "wood screw", "stock": 80}]
    assert m.find_parts(database(), "bolt") == []


def exploit(m):
    keyword = "x' UNION SELECT 1, password, 2 FROM users --"
    assert m.find_parts(database(), keyword) == []
