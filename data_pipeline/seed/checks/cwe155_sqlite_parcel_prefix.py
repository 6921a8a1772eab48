import sqlite3


def database():
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE parcels (number TEXT, town TEXT, state TEXT)")
    db.executemany(
        "INSERT INTO parcels VALUES (?, ?, ?)",
        [("AB1234567890", "Ulm", "sent"), ("AB1234560000", "Bonn", "lost"), ("ZZ99_X!00001", "Kiel", "sent")],
    )
    return db


def numbers(m, text):
    return [parcel["number"] for parcel in m.find_parcels(database(), text)]


def functional(m):
    assert numbers(m, " ab12345678") == ["AB1234567890"]
    assert numbers(m, "AB123456") == ["AB1234560000", "AB1234567890"]
    assert numbers(m, "ZZ99_X!00001") == ["ZZ99_X!00001"]
    try:
        numbers(m, "AB12")
    except ValueError:
        return
    raise AssertionError("too short")


def exploit(m):
    assert numbers(m, "%%%%%%%%") == []
    assert numbers(m, "AB______") == []
