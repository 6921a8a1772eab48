from doubles import module


class Redis:
    def __init__(self):
        self.data = {}

    def set(self, key, value, nx=False, ex=None):
        if nx and key in self.data:
            return None
        self.data[key] = value
        return True


module("redis", Redis=Redis)
PAID = {"id": "evt_1", "state": "paid", "order": 17}


def functional(m):
    shipped = []
    assert m.handle_payment(Redis(), PAID, shipped.append) is True
    assert m.handle_payment(Redis(), PAID | {"state": "failed"}, shipped.append) is False
    assert shipped == [17]


def exploit(m):
    client, shipped = Redis(), []
    for _ in range(3):
        m.handle_payment(client, PAID, shipped.append)
    assert shipped == [17]
