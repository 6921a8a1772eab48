def rows(path):
    with open(path, encoding="utf-8") as file:
        return [line.rstrip("\n").split("|") for line in file]


def functional(m):
    assert m.add_badge("badges", " Ada Byron ", "B 12") == "Ada Byron|B 12|visitor"
    assert m.add_badge("badges", "Bo", "C 1") == "Bo|C 1|visitor"
    assert len(rows("badges")) == 2
    try:
        m.add_badge("badges", " ", "C 1")
    except ValueError:
        return
    raise AssertionError("empty name accepted")


def exploit(m):
    for holder in ("Eve|lab|staff", "Eve|lab|staff\nEve"):
        try:
            m.add_badge("badges", holder, "B 12")
        except ValueError:
            continue
        assert all(row[2] == "visitor" for row in rows("badges"))
