import json
from pathlib import Path


def functional(m):
    Path("plan.json").write_text('{"A1": null, "A2": "Ann Longname"}')
    assert m.book_seat("plan.json", "A1", "Bob") is True
    assert m.book_seat("plan.json", "A1", "Cleo") is False
    assert json.loads(Path("plan.json").read_text()) == {"A1": "Bob", "A2": "Ann Longname"}


def exploit(m):
    Path("plan.json").write_text('{"A1": null}')
    load, outcomes = json.load, []

    def load_and_dawdle(file):
        seats = load(file)
        json.load = load
        try:
            outcomes.append(m.book_seat("plan.json", "A1", "Bob"))
        except TimeoutError:
            outcomes.append(False)
        return seats

    json.load = load_and_dawdle
    outcomes.append(m.book_seat("plan.json", "A1", "Ann"))
    assert outcomes.count(True) == 1
