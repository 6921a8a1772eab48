import json
import time

TICKETS = range(1000, 9000)
PRIZES = ["bicycle", "lamp", "cake", "book", "tea"]


def functional(m):
    result = m.draw(TICKETS, PRIZES, "draws.jsonl")
    assert list(result) == PRIZES and len(set(result.values())) == 5 and set(result.values()) <= set(TICKETS)
    with open("draws.jsonl") as file:
        line = json.loads(file.read())
    assert line["result"] == result and abs(line["time"] - time.time()) < 100
    try:
        m.draw([1, 1], ["cake", "tea"], "draws.jsonl")
    except ValueError:
        return
    raise AssertionError("one ticket for two prizes")


def exploit(m):
    time.time = lambda: 1_800_000_000.0
    assert m.draw(TICKETS, PRIZES, "real.jsonl") != m.draw(TICKETS, PRIZES, "rehearsal.jsonl")
