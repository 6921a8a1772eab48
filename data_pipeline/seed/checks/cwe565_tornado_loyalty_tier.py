from doubles import fetch

CARDS = {"42": "gold"}


def functional(m):
    app = m.make_app(CARDS, "s3cret")
    assert fetch(app, "/price/1000").body == b'{"cents": 1000}'
    assert fetch(app, "/card", method="POST", body="number=7").code == 404
    cookie = fetch(app, "/card", method="POST", body="number=42").headers["Set-Cookie"].partition(";")[0]
    assert fetch(app, "/price/1000", headers={"Cookie": cookie}).body == b'{"cents": 800}'


def exploit(m):
    for value in ("gold", '"gold"'):
        answer = fetch(m.make_app(CARDS, "s3cret"), "/price/1000", headers={"Cookie": f"tier={value}"})
        assert b"800" not in answer.body
