from doubles import module


class Redis:
    def __init__(self):
        self.now = 0
        self.data = {}

    @classmethod
    def from_url(cls, url, decode_responses):
        return cls()

    def set(self, key, value):
        self.data[key] = (str(value), float("inf"))

    def setex(self, key, seconds, value):
        self.data[key] = (str(value), self.now + seconds)

    def get(self, key):
        value, end = self.data.get(key, (None, 0))
        return value if self.now < end else None

    def delete(self, key):
        self.data.pop(key, None)


module("redis", Redis=Redis)


def functional(m):
    store = m.SessionStore("redis://localhost")
    first, second = store.open(7), store.open(8)
    assert first != second and store.user(first) == "7" and store.user("other") is None
    store.close(first)
    assert store.user(first) is None and store.user(second) == "8"


def exploit(m):
    store = m.SessionStore("redis://localhost")
    sid = store.open(7)
    store.db.now += 365 * 24 * 3600
    assert store.user(sid) is None
