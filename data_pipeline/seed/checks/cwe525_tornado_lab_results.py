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
