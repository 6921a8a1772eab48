import sqlite3


def functional(m):
    db = sqlite3.connect(":memory:")
    assert m.cast(db, "2026", 1, "Ann") is True
    assert m.cast(db, "2026", 2, "Ann") is True
    assert m.cast(db, "2026", 3, "Bob") is True
    assert m.cast(db, "2026", 3, "Bob") is False
    assert m.cast(db, "2027", 3, "Bob") is True
    assert m.tally(db, "2026") == {"Ann": 2, "Bob": 1}


def exploit(m):
    db = sqlite3.connect(":memory:")
    for candidate in ("Ann", "Bob", "ann", "Cleo"):
        m.cast(db, "2026", 1, candidate)
    assert m.tally(db, "2026") == {"Ann": 1}
