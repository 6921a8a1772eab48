import struct
import time

SERVER = ("192.0.2.1", 4123)


class Socket:
    """Answers with what is queued, then as the server would."""

    def __init__(self, *queued, ahead=3600):
        self.queued, self.ahead = list(queued), ahead

    def settimeout(self, seconds):
        assert 0 < seconds <= 2

    def sendto(self, data, address):
        assert len(data) == 8 and address == SERVER
        self.request = data

    def recvfrom(self, size):
        if self.queued:
            return self.queued.pop(0)
        if self.ahead is None:
            raise TimeoutError
        return self.request + struct.pack("!d", time.time() + self.ahead), SERVER


def functional(m):
    assert abs(m.offset(Socket(), SERVER) - 3600) < 5
    assert abs(m.offset(Socket((b"short", SERVER)), SERVER) - 3600) < 5
    try:
        m.offset(Socket(ahead=None), SERVER)
    except TimeoutError:
        return
    raise AssertionError("no reply passed as one")


def exploit(m):
    forged = bytes(8) + struct.pack("!d", 0.0)
    for sender in (("203.0.113.66", 4123), SERVER):
        assert abs(m.offset(Socket((forged, sender)), SERVER) - 3600) < 5
