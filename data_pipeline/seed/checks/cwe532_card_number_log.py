import logging
from types import SimpleNamespace

records = []


class Declined(Exception):
    pass


class Keep(logging.Handler):
    def emit(self, record):
        records.append(record.getMessage())


def charge(m, declines=False):
    def bank(number, expiry, total):
        assert (number, expiry, total) == ("4000123412341234", "12/29", 1999)
        if declines:
            raise Declined
        return SimpleNamespace(reference="R-7")

    m.logger.handlers = [Keep()]
    m.logger.setLevel(logging.DEBUG)
    card = SimpleNamespace(number="4000123412341234", expiry="12/29")
    gateway = SimpleNamespace(charge=bank, Declined=Declined)
    return m.charge(gateway, SimpleNamespace(id=17, total=1999), card)


def functional(m):
    assert charge(m).reference == "R-7" and any("17" in text for text in records)
    try:
        charge(m, declines=True)
    except Declined:
        return
    raise AssertionError("a declined card")


def exploit(m):
    charge(m)
    assert records and not any("4000123412341234" in text for text in records)
