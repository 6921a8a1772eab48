import os
from types import SimpleNamespace

from doubles import flask

os.environ["SHOP_SECRET"] = "k" * 40
request = SimpleNamespace(args={})
session = {}
flask(request, session=session, redirect=lambda url: url)


def choose(m, code, **args):
    request.args = args
    return m.choose_language(code)


def functional(m):
    assert choose(m, "de", back="/basket") == "/basket" and session == {"language": "de"}
    assert choose(m, "xx") == "/catalog" and session == {"language": "de"}
    assert choose(m, "en", back="https://evil.example/") == "/catalog"


def exploit(m):
    for back in ("//evil.example/", "/\\evil.example"):
        assert "evil" not in choose(m, "en", back=back)
