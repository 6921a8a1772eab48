import sqlite3


def database():
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE posts (id INTEGER PRIMARY KEY, title TEXT, author TEXT, published INTEGER)")
    db.executemany(
        "INSERT INTO posts (title, author, published) VALUES (?, ?, ?)", [("One", "Ada", 1), ("Draft", "Bo", 0), ("Two", "Cy", 1)]
    )
    db.execute("CREATE TABLE users (name TEXT, password TEXT)")
    db.execute("INSERT INTO users VALUES ('ada', 's3cret')")
    return db


def functional(m):
    assert m.latest_posts(database(), "/news/today.html") == ["Two by Cy", "One by Ada"]
    assert m.latest_posts(database(), "/", 1) == ["Two by Cy"]


def exploit(m):
    page = "/news */ SELECT name, password FROM users LIMIT ? --"
    assert "s3cret" not in str(m.latest_posts(database(), page))
