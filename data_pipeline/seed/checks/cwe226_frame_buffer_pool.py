def functional(m):
    pool = m.BufferPool(8, 1)
    buffer = pool.take()
    assert buffer == bytearray(8)
    try:
        pool.take()
    except RuntimeError:
        pool.give(buffer)
    assert len(pool.take()) == 8


def exploit(m):
    pool = m.BufferPool(16, 1)
    buffer = pool.take()
    buffer[:] = b"diagnosis: asthm"
    pool.give(buffer)
    later = pool.take()
    later[:4] = b"scan"
    assert b"asthm" not in later
