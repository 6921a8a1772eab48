import asyncio

from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port


def fetch(app, path, **options):
    async def talk():
        socket, port = bind_unused_port()
        server = HTTPServer(app)
        server.add_socket(socket)
        client = AsyncHTTPClient(force_instance=True)
        try:
            return await client.fetch(f"http://127.0.0.1:{port}{path}", raise_error=False, follow_redirects=False, **options)
        finally:
            client.close()
            server.stop()

    return asyncio.run(talk())


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
