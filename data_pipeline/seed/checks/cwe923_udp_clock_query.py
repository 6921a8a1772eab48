import socket
import threading


def clock(*replies):
    """A clock's socket; each reply is sent by the socket it comes with."""
    own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    own.bind(("127.0.0.1", 0))

    def serve():
        query, logger = own.recvfrom(64)
        for other, reply in replies:
            (other or own).sendto(reply if query == b"TIME" else b"", logger)

    threading.Thread(target=serve, daemon=True).start()
    return own.getsockname()


def functional(m):
    assert m.ask_clock(*clock((None, (1_700_000_000).to_bytes(8, "big"))), 30) == 1_700_000_000
    for replies, error in (([(None, b"noon")], ValueError), ([], TimeoutError)):
        try:
            m.ask_clock(*clock(*replies), 1)
        except error:
            continue
        raise AssertionError(replies)


def exploit(m):
    stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    stranger.bind(("127.0.0.1", 0))
    replies = (stranger, (1).to_bytes(8, "big")), (None, (1_700_000_000).to_bytes(8, "big"))
    assert m.ask_clock(*clock(*replies), 30) == 1_700_000_000
