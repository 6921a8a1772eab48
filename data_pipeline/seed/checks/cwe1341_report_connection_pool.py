import queue
import sqlite3


def make_pool():
    pool = queue.Queue()
    for _ in range(2):
        pool.put(sqlite3.connect(":memory:"))
    return pool


def functional(m):
    pool = make_pool()
    assert m.run_report(pool, "SELECT ? + 1", (41,)) == [(42,)]
    assert pool.qsize() == 2
    try:
        m.run_report(pool, "SELECT * FROM nowhere")
    except sqlite3.Error:
        return
    raise AssertionError("error swallowed")


def exploit(m):
    pool = make_pool()
    try:
        m.run_report(pool, "SELECT * FROM nowhere")
    except sqlite3.Error:
        pass
    idle = [pool.get_nowait() for _ in range(pool.qsize())]
    assert len(idle) == len({id(connection) for connection in idle})
