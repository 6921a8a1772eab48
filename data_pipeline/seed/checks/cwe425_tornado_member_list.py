import asyncio

from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import create_signed_value


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
