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
    assert m.may_enter(yes, "B 1/2", "north") is True and yes.asked == ("GET", "/doors/north/badges/B%201%2F2")
    assert m.may_enter(Connection(403), "B1", "north") is False


def exploit(m):
    for status in (204, 302, 401, 404, 429, 500, 503):
        assert m.may_enter(Connection(status), "B1", "vault") is False
