from datetime import datetime

NINE, ELEVEN = datetime(2026, 3, 2, 9), datetime(2026, 3, 2, 11)


def functional(m):
    booked = [(datetime(2026, 3, 2, 9, 30), datetime(2026, 3, 2, 10))]
    assert m.free_slots(NINE, ELEVEN, 30, booked) == [NINE, datetime(2026, 3, 2, 10), datetime(2026, 3, 2, 10, 30)]
    assert m.free_slots(ELEVEN, NINE, 30, []) == []
    try:
        m.free_slots(NINE, ELEVEN, 0, [])
    except ValueError:
        return
    raise AssertionError("slots of no length")


def exploit(m):
    try:
        slots = m.free_slots(NINE, datetime(2026, 9, 2), 1, [(NINE, ELEVEN)])
    except ValueError:
        return
    assert len(slots) < 100_000
