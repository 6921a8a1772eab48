import json


def card(state, loans, fees):
    return json.dumps({"state": state, "loans": loans, "fees_cents": fees})


def functional(m):
    assert m.may_borrow(card("active", 2, 0), 5) is True
    assert m.may_borrow(card("active", 5, 0), 5) is False
    assert m.may_borrow(card("active", 0, 150), 5) is False


def exploit(m):
    assert m.may_borrow(card("blocked", 0, 0), 5) is False
    assert m.may_borrow(card("Blocked ", 0, 0), 5) is False
