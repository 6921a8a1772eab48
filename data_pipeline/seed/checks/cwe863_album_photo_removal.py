import sqlite3


def site():
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE albums (id INTEGER PRIMARY KEY, owner TEXT)")
    db.execute("CREATE TABLE photos (id INTEGER PRIMARY KEY, album INTEGER, file TEXT)")
    db.execute("INSERT INTO albums VALUES (1, 'ann'), (2, 'eve')")
    db.execute("INSERT INTO photos VALUES (10, 1, 'lake.jpg'), (20, 2, 'cat.jpg')")
    return db


def functional(m):
    db = site()
    assert m.remove_photo(db, "ann", 1, 10) == "lake.jpg"
    for arguments, error in ((("ann", 1, 10), LookupError), (("ann", 2, 20), PermissionError), (("ann", 3, 20), PermissionError)):
        try:
            m.remove_photo(db, *arguments)
        except error:
            continue
        raise AssertionError(arguments)
    assert db.execute("SELECT id FROM photos").fetchall() == [(20,)]


def exploit(m):
    db = site()
    try:
        m.remove_photo(db, "eve", 2, 10)
    except LookupError:
        pass
    assert db.execute("SELECT count(*) FROM photos").fetchone() == (2,)
