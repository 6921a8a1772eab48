import logging
from types import SimpleNamespace

records = []


class Keep(logging.Handler):
    def emit(self, record):
        records.append((record.levelno, record.getMessage()))


def attempt(m, user, pin):
    m.logger.handlers = [Keep()]
    m.logger.setLevel(logging.INFO)
    released = []
    vault = SimpleNamespace(pins={"ada": "4711"}, release=lambda: released.append(1), name="cabinet 2")
    return m.open_vault(vault, user, pin), len(released)


def functional(m):
    assert attempt(m, "ada", "4711") == (True, 1)
    assert len(records) == 1 and "ada" in records[0][1] and "cabinet 2" in records[0][1]
    assert attempt(m, "ada", "0000") == attempt(m, "eve", "") == (False, 0)


def exploit(m):
    for pin in range(5):
        attempt(m, "ada", f"{pin:04}")
    assert len(records) == 5 and all(level >= logging.WARNING and "ada" in text for level, text in records)
