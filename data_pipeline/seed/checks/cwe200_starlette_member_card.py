import asyncio
from types import SimpleNamespace

from doubles import module

module("starlette.responses", JSONResponse=lambda body, status_code=200: (status_code, body))
ADA = {"id": 7, "name": "Ada", "rating": 1900, "joined": 2019, "mail": "ada@example.org", "password_hash": "scrypt$1"}


def get(m, number):
    app = SimpleNamespace(state=SimpleNamespace(members={7: ADA}))
    return asyncio.run(m.member_card(SimpleNamespace(app=app, path_params={"id": number})))


def functional(m):
    status, body = get(m, 7)
    assert status == 200 and body["name"] == "Ada" and body["rating"] == 1900 and body["joined"] == 2019
    assert get(m, 8)[0] == 404


def exploit(m):
    _, body = get(m, 7)
    assert "ada@example.org" not in body.values() and "scrypt$1" not in body.values()
