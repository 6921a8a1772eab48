import io
import json


class Response(io.RawIOBase):
    """JSON, followed by up to `blanks` spaces, of which it counts those that are read."""

    def __init__(self, answer, blanks=0):
        self.rest, self.blanks, self.taken = json.dumps(answer).encode(), blanks, 0

    def read(self, size=-1):
        wanted = len(self.rest) + self.blanks if size is None or size < 0 else size
        data, self.rest = self.rest[:wanted], self.rest[wanted:]
        spaces = min(wanted - len(data), self.blanks)
        self.blanks -= spaces
        self.taken += len(data) + spaces
        return data + b" " * spaces


def rates(m, response, currency):
    urls = []
    m.urlopen = lambda url, timeout: urls.append(url) or response
    return m.fetch_rates(currency), urls


def functional(m):
    answer, urls = rates(m, Response({"rates": {"USD": "1.1", "SEK": 11}}), "eur")
    assert answer == {"USD": 1.1, "SEK": 11.0}
    assert urls == ["https://rates.partner.example/v1/EUR"]


def exploit(m):
    response = Response({"rates": {}}, blanks=100_000_000)
    rates(m, response, "eur")
    assert response.taken <= 10_000_000
