from types import SimpleNamespace


class Connection:
    def __init__(self, status):
        self.status = status

    def request(self, method, path):
        self.asked = (method, path)

    def getresponse(self):
        return SimpleNamespace(status=self.status, read=lambda: b"")


def functional(m):
    yes = Connection(200)
    assert m.may_enter(yes, "B12", "north 2") is True and yes.asked == ("GET", "/doors/north%202/badges/B12")
    assert m.may_enter(Connection(403), "B1", "north") is m.may_enter(Connection(200), "..", "north") is False


def exploit(m):
    for status in (204, 302, 401, 404, 429, 500, 503):
        assert m.may_enter(Connection(status), "B1", "vault") is False
