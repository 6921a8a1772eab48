import struct


class Socket:
    def __init__(self):
        self.sent = []

    def recvfrom_into(self, buffer):
        buffer[: len(self.incoming)] = self.incoming
        return len(self.incoming), ("192.0.2.7", 4000)

    def sendto(self, data, address):
        self.sent.append((bytes(data), address))


def send(beacon, sock, datagram):
    sock.incoming = datagram
    beacon.answer(sock)


def functional(m):
    beacon, sock = m.Beacon(), Socket()
    send(beacon, sock, struct.pack("!BH", 1, 4) + b"ping")
    assert sock.sent == [(struct.pack("!BH", 2, 4) + b"ping", ("192.0.2.7", 4000))]
    send(beacon, sock, struct.pack("!BH", 7, 4) + b"ping")
    send(beacon, sock, b"\1")
    assert len(sock.sent) == 1


def exploit(m):
    beacon, sock = m.Beacon(), Socket()
    send(beacon, sock, struct.pack("!BH", 1, 16) + b"token=s3cr3t-abc")
    send(beacon, sock, struct.pack("!BH", 1, 16) + b"x")
    assert not any(b"s3cr3t" in data for data, _ in sock.sent[1:])
