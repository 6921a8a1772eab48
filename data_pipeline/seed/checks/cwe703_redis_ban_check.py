import logging

from doubles import module

logging.disable(logging.CRITICAL)


class RedisError(Exception):
    pass


module("redis", RedisError=RedisError)


class Client:
    down = False

    def sismember(self, key, member):
        if self.down:
            raise RedisError("connection refused")
        return (key, member) == ("room:lounge:banned", 8)


def functional(m):
    assert m.may_join(Client(), "lounge", 7) is True and m.may_join(Client(), "lounge", 8) is False


def exploit(m):
    client = Client()
    client.down = True
    assert m.may_join(client, "lounge", 8) is False
