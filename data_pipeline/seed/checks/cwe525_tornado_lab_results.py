from doubles import fetch
from tornado.web import create_signed_value

RESULTS = {"ann": [{"test": "iron", "value": 71}]}


def results(m):
    cookie = {"Cookie": "patient=" + create_signed_value("s3cret", "patient", "ann").decode()}
    return fetch(m.make_app(RESULTS, "s3cret"), "/results", headers=cookie)


def functional(m):
    answer = results(m)
    assert answer.code == 200 and b"iron" in answer.body
    assert fetch(m.make_app(RESULTS, "s3cret"), "/results").code == 403


def exploit(m):
    assert "no-store" in results(m).headers.get("Cache-Control", "")
