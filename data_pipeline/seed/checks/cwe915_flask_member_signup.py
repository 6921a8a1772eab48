from types import SimpleNamespace

from doubles import flask, module

request = SimpleNamespace()
flask(request, jsonify=lambda **values: values)
added = []


class Member:
    def __init__(self, name, email, role="member", id=None):
        self.name, self.email, self.role, self.id = name, email, role, id or 17


session = SimpleNamespace(add=added.append, commit=lambda: None)
module("club.models", Member=Member, db=SimpleNamespace(session=session))


def sign_up(m, **data):
    request.get_json = lambda: data
    return m.create_member()


def functional(m):
    assert sign_up(m, name="Ada", email="ada@example.org") == ({"id": 17}, 201)
    assert added[0].name == "Ada" and added[0].email == "ada@example.org" and added[0].role == "member"


def exploit(m):
    sign_up(m, name="Eve", email="eve@example.org", role="treasurer")
    assert added[0].role == "member"
