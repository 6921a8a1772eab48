class Connection:
    def __init__(self, data=None):
        self.data = data
        self.limit = None

    def settimeout(self, seconds):
        self.limit = seconds

    def recv(self, size):
        if self.data is not None:
            return self.data
        assert self.limit is not None, "waits for ever for a silent scale"
        raise TimeoutError("timed out")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


class Listener:
    def __init__(self, *connections):
        self.connections = list(connections)

    def accept(self):
        return self.connections.pop(0), ("192.0.2.7", 4000)


def functional(m):
    assert m.read_weights(Listener(Connection(b"12.5\n"), Connection(b"?"), Connection(b"3")), 3) == [12.5, None, 3.0]


def exploit(m):
    assert m.read_weights(Listener(Connection(), Connection(b"3")), 2) == [None, 3.0]
