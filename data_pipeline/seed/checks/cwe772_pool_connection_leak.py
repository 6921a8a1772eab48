from contextlib import contextmanager


class Rows:
    def execute(self, query, parameters):
        assert parameters == (7,)
        return self

    def fetchall(self):
        return [("R-1", 250), ("R-2", 100)]


class Pool:
    free = 4

    def getconn(self):
        assert self.free, "no connection is left"
        self.free -= 1
        return Rows()

    def putconn(self, connection):
        self.free += 1

    @contextmanager
    def connection(self):
        connection = self.getconn()
        try:
            yield connection
        finally:
            self.putconn(connection)


def functional(m):
    assert m.open_invoices(Pool(), 7) == [("R-1", 250), ("R-2", 100)]


def exploit(m):
    pool = Pool()
    for _ in range(10):
        m.open_invoices(pool, 7)
    assert pool.free == 4
