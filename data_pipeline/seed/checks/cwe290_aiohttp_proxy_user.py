from types import SimpleNamespace

from doubles import HTTPError, module


class HTTPUnauthorized(HTTPError):
    def __init__(self, reason=None):
        super().__init__(401, reason)


web = SimpleNamespace(HTTPUnauthorized=HTTPUnauthorized, json_response=lambda body: body)
module("aiohttp", web=web)


def user(m, remote, **headers):
    try:
        return m.current_user(SimpleNamespace(remote=remote, headers=headers))
    except HTTPUnauthorized:
        return None


def functional(m):
    assert user(m, "10.0.0.5", **{"X-Remote-User": "Ada "}) == "ada"
    assert user(m, "10.0.0.5") is None


def exploit(m):
    assert user(m, "192.0.2.66", **{"X-Remote-User": "ada"}) is None
