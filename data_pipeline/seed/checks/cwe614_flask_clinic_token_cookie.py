from types import SimpleNamespace

from doubles import HTTPError, flask, module

request = SimpleNamespace()


class Response:
    def __init__(self):
        self.cookies = {}

    def set_cookie(self, key, value, **options):
        self.cookies[key] = (value, options)


flask(request, redirect=lambda url: url, make_response=lambda url: Response())
patients = {("K-7", "4711"): SimpleNamespace(id=7)}
module("clinic.auth", issue_token=lambda number: f"token-{number}", verify_card=lambda *card: patients.get(card))


def login(m, pin):
    request.form = {"card": "K-7", "pin": pin}
    try:
        return m.login().cookies["portal_token"]
    except HTTPError as error:
        return error.status_code


def functional(m):
    value, options = login(m, "4711")
    assert value == "token-7" and options["max_age"] == 3600 and login(m, "0000") == 401


def exploit(m):
    assert login(m, "4711")[1].get("secure") is True
