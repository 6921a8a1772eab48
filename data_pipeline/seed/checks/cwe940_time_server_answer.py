import struct

SERVER = ("192.0.2.1", 37)


class Socket:
    def __init__(self, *datagrams):
        self.datagrams = list(datagrams)
        self.sent = []

    def sendto(self, data, address):
        self.sent.append((data, address))

    def recvfrom(self, size):
        return self.datagrams.pop(0)


def functional(m):
    sock = Socket((b"?", SERVER), (struct.pack("!I", 1_770_000_000), SERVER))
    assert m.ask_time(sock, SERVER) == 1_770_000_000 and sock.sent == [(b"TIME?", SERVER)]
    try:
        m.ask_time(Socket(*[(b"", SERVER)] * 10), SERVER)
    except TimeoutError:
        return
    raise AssertionError("a time without an answer")


def exploit(m):
    forged = (struct.pack("!I", 1), ("203.0.113.66", 37))
    sock = Socket(forged, forged, (struct.pack("!I", 1_770_000_000), SERVER))
    assert m.ask_time(sock, SERVER) == 1_770_000_000
