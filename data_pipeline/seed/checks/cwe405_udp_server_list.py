SERVERS = [(f"10.0.{i // 200}.{i % 200}", 4000 + i) for i in range(500)]


def query(start, size):
    return (b"LIST" + start.to_bytes(2, "big")).ljust(size, b"\0")


def functional(m):
    reply = m.list_reply(query(2, 1400), SERVERS)
    assert reply[:6] == query(2, 6) and len(reply) == 6 + 6 * 232
    assert reply[6:12] == bytes([10, 0, 0, 2]) + (4002).to_bytes(2, "big")
    assert len(m.list_reply(query(498, 1400), SERVERS)) == 6 + 2 * 6
    assert m.list_reply(b"PING", SERVERS) == b""


def exploit(m):
    for size in (6, 7, 64, 600):
        assert len(m.list_reply(query(0, size), SERVERS)) <= size
