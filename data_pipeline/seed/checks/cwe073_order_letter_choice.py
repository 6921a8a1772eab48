from pathlib import Path

ORDER = {"name": "Ada", "items": [{"price": 2.5, "count": 2}]}


def letters():
    Path("letters").mkdir()
    Path("letters/formal.txt").write_text("Dear $name, your total is $total.")
    Path("letters/friendly.txt").write_text("Hi $name!")


def functional(m):
    letters()
    assert m.confirmation(ORDER) == "Dear Ada, your total is 5.00."
    assert m.confirmation({**ORDER, "letter": "friendly"}) == "Hi Ada!"


def exploit(m):
    letters()
    Path("suppliers").mkdir()
    Path("suppliers/prices.txt").write_text("bread 0.31")
    for letter in ("../suppliers/prices", str(Path("suppliers/prices").absolute())):
        try:
            text = m.confirmation({**ORDER, "letter": letter})
        except ValueError:
            continue
        assert "0.31" not in text
