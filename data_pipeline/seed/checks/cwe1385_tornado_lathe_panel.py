import asyncio

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import create_signed_value
from tornado.websocket import websocket_connect

USER = "user=" + create_signed_value("s3cret", "user", "ann").decode()


def tell(m, lathe, message, origin, cookie):
    async def talk():
        socket, port = bind_unused_port()
        server = HTTPServer(m.make_app(lathe, "s3cret"))
        server.add_socket(socket)
        request = HTTPRequest(f"ws://127.0.0.1:{port}/panel", headers={"Origin": origin, "Cookie": cookie})
        try:
            connection = await websocket_connect(request)
            await connection.write_message(message)
            reply = await connection.read_message()
            connection.close()
            return reply
        except HTTPClientError as error:
            return error.code
        finally:
            server.stop()

    return asyncio.run(talk())


def functional(m):
    lathe = {"state": "stop"}
    assert tell(m, lathe, "start", "https://lathe.workshop.example", USER) == "start"
    assert tell(m, lathe, "explode", "https://lathe.workshop.example", USER) == "start"
    assert tell(m, lathe, "stop", "https://lathe.workshop.example", "user=ann") == 403
    assert lathe == {"state": "start"}


def exploit(m):
    for origin in ("https://evil.example", "https://lathe.workshop.example.evil.example", "null"):
        lathe = {"state": "stop"}
        tell(m, lathe, "start", origin, USER)
        assert lathe == {"state": "stop"}, origin
