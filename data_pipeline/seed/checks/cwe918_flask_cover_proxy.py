from types import SimpleNamespace

from doubles import HTTPError, flask, module

request = SimpleNamespace()
flask(request, Response=lambda content, mimetype: (content, mimetype))
asked = []


def get(url, timeout, allow_redirects=True):
    asked.append(url)
    return SimpleNamespace(content=b"jpeg")


module("requests")


def cover(m, url):
    m.requests.get = get
    request.args = {"url": url}
    try:
        return m.cover()
    except HTTPError as error:
        return error.status_code


def functional(m):
    assert cover(m, "https://img.bookhub.example/7.jpg") == (b"jpeg", "image/jpeg")
    assert cover(m, "file:///etc/passwd") == 400 and len(asked) == 1


def exploit(m):
    for url in ("http://169.254.169.254/latest/meta-data/", "http://localhost:8080/", "https://img.bookhub.example@10.0.0.1/"):
        assert cover(m, url) == 400
    assert asked == []
