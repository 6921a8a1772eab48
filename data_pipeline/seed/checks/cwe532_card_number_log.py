import io
import logging
from types import SimpleNamespace

CARD = SimpleNamespace(number="4000056655665556", expiry="12/30")


class Gateway:
    class Declined(Exception):
        pass

    def charge(self, number, expiry, amount):
        if amount > 100:
            raise self.Declined
        return SimpleNamespace(reference=f"R-{amount}", number=number)


def charge(m, total):
    stream = io.StringIO()
    logging.basicConfig(stream=stream, level=logging.DEBUG)
    try:
        return m.charge(Gateway(), SimpleNamespace(id=7, total=total), CARD), stream.getvalue()
    except Gateway.Declined:
        return None, stream.getvalue()


def functional(m):
    receipt, log = charge(m, 50)
    assert receipt.reference == "R-50" and receipt.number == CARD.number
    assert "R-50" in log and "order 7" in log


def exploit(m):
    for total in (50, 500):
        assert CARD.number not in charge(m, total)[1]
