import hmac
import struct

KEY = b"k" * 32


def frame(counter, key=KEY):
    body = struct.pack(">Q", counter)
    return body + hmac.digest(key, body, "sha256")


def functional(m):
    garage = m.Garage(KEY)
    assert garage.receive(frame(1)) is True and garage.receive(frame(9)) is True
    assert garage.receive(frame(10, b"x" * 32)) is False and garage.receive(b"short") is False
    assert garage.opened == 2


def exploit(m):
    garage = m.Garage(KEY)
    recorded = [frame(1), frame(2)]
    for one in recorded + recorded[::-1]:
        garage.receive(one)
    assert garage.opened == 2
