import io
from urllib.parse import parse_qs

requests = []


def send(m, *values):
    def urlopen(request, timeout):
        requests.append(request)
        return io.BytesIO(b'{"changed": true}')

    m.urlopen = urlopen
    return m.change_pin("t0ken", *values)


def functional(m):
    assert send(m, "4000123", "1234", "9876") is True
    (request,) = requests
    sent = request.data.decode() if request.data else request.full_url.partition("?")[2]
    assert parse_qs(sent) == {"card": ["4000123"], "old": ["1234"], "new": ["9876"]}
    assert request.host == "api.bank.example" and request.get_header("Authorization") == "Bearer t0ken"
    try:
        send(m, "4000123", "1234", "98765")
    except ValueError:
        return
    raise AssertionError("a PIN of five digits")


def exploit(m):
    send(m, "4000123", "1234", "9876")
    assert "9876" not in requests[0].full_url and "4000123" not in requests[0].full_url
