from types import SimpleNamespace

from doubles import HTTPError, module

SESSION = {}
REQUEST = SimpleNamespace(form={})


class Blueprint:
    def __init__(self, name, module_name):
        pass

    def post(self, rule):
        return lambda function: function


class Redis:
    def __init__(self):
        self.data = {}

    def setex(self, key, seconds, value):
        self.data[key] = value


def abort(status):
    raise HTTPError(status)


def authenticate(nick, password):
    return SimpleNamespace(id=7) if (nick, password) == ("ann", "right") else None


module("flask", Blueprint=Blueprint, abort=abort, redirect=lambda place: place, request=REQUEST, session=SESSION)
module("redis", Redis=Redis)
module("poker.players", authenticate=authenticate)


def functional(m):
    REQUEST.form = {"nick": "ann", "password": "right"}
    assert m.login() == "/tables"
    assert m.store.data == {f"player:{SESSION['sid']}": 7}
    REQUEST.form = {"nick": "ann", "password": "wrong"}
    try:
        m.login()
    except HTTPError as error:
        if error.status_code == 401:
            return
    raise AssertionError("logged in with a wrong password")


def exploit(m):
    SESSION["sid"] = "chosen by someone else"
    REQUEST.form = {"nick": "ann", "password": "right"}
    m.login()
    assert "player:chosen by someone else" not in m.store.data
