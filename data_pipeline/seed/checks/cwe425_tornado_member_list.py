from doubles import fetch
from tornado.web import create_signed_value

MEMBERS = [{"name": "Ann", "phone": "555-0100"}]


def functional(m):
    app = m.make_app(MEMBERS, "s3cret")
    cookie = {"Cookie": "user=" + create_signed_value("s3cret", "user", "ann").decode()}
    assert b"/login" in fetch(app, "/").body
    assert b"/members" in fetch(app, "/", headers=cookie).body
    assert b"555-0100" in fetch(app, "/members", headers=cookie).body


def exploit(m):
    app = m.make_app(MEMBERS, "s3cret")
    for headers in ({}, {"Cookie": "user=ann"}):
        assert b"555-0100" not in fetch(app, "/members", headers=headers).body
