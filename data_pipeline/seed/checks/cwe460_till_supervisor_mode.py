import logging
from types import SimpleNamespace

logging.disable(logging.CRITICAL)


def new_till():
    return SimpleNamespace(number=3, level="cashier", pin_matches=lambda pin: pin == "4711")


def functional(m):
    till = new_till()
    assert m.as_supervisor(till, "4711", lambda t: t.level) == "supervisor" and till.level == "cashier"
    try:
        m.as_supervisor(till, "0000", lambda t: t.level)
    except PermissionError:
        return
    raise AssertionError("a wrong pin was accepted")


def exploit(m):
    till = new_till()
    try:
        m.as_supervisor(till, "4711", lambda t: 1 / 0)
    except ZeroDivisionError:
        pass
    assert till.level == "cashier"
