import io


class Body(io.BytesIO):
    taken = 0

    def read(self, *size):
        data = super().read(*size)
        Body.taken += len(data)
        return data


def fetch(m, data):
    def urlopen(url, timeout):
        assert url == "https://rates.partner.example/v1/EUR"
        return Body(data)

    m.urlopen = urlopen
    return m.fetch_rates("eur")


def functional(m):
    assert fetch(m, b'{"rates": {"USD": 1.25, "NOK": "11.5"}}') == {"USD": 1.25, "NOK": 11.5}


def exploit(m):
    try:
        fetch(m, b'{"rates": {' + b" " * 20_000_000 + b"}}")
    except ValueError:
        pass
    assert Body.taken < 5_000_000
