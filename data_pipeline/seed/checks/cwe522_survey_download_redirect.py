import io
from urllib.request import HTTPRedirectHandler

requests = []


def fetch(m, url):
    def urlopen(request, timeout):
        requests.append(request)
        return io.BytesIO(b"points")

    m.urlopen = urlopen
    return m.download(url, "ada", "hunter2", "points.las")


def functional(m):
    assert fetch(m, "https://maps.example/points.las") == 6
    with open("points.las", "rb") as file:
        assert file.read() == b"points"
    assert requests[0].get_header("Authorization") == "Basic YWRhOmh1bnRlcjI="
    try:
        fetch(m, "http://maps.example/points.las")
    except ValueError:
        return
    raise AssertionError("a password over http")


def exploit(m):
    fetch(m, "https://maps.example/points.las")
    later = HTTPRedirectHandler().redirect_request(requests[0], None, 302, "Found", {}, "https://storage.example/7f3a")
    assert later.host == "storage.example" and later.get_header("User-agent") == "survey-tool/2"
    assert not later.has_header("Authorization")
