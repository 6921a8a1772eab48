"""Connections: whoever sends half a request holds nothing, and a port has one server."""

import asyncio

import pytest
import uvicorn
from uvicorn.server import ServerState

from lpo_jax.config import ConfigError
from lpo_jax.serve import server as serving

HEAD_S = 0.4
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def app(scope, receive, send):
    """Answers with what it was sent."""
    body, more = b"", True
    while more:
        event = await receive()
        body, more = body + event.get("body", b""), event.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def talk(monkeypatch, *said):
    """What comes back on one connection, and whether the server has closed it; numbers are seconds to wait."""
    monkeypatch.setattr(serving, "HEAD_TIMEOUT_S", HEAD_S)

    async def run():
        config = uvicorn.Config(app, lifespan="off", log_config=None)
        config.load()
        loop, state = asyncio.get_running_loop(), ServerState()
        server = await loop.create_server(lambda: serving._Impatient(config, state, {}), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for each in said:
            if isinstance(each, bytes):
                writer.write(each)
            else:
                await asyncio.sleep(each)
        heard = b""
        try:
            async with asyncio.timeout(0.1):
                while part := await reader.read(1000):
                    heard += part
            closed = True
        except TimeoutError:
            closed = False
        except ConnectionResetError:
            closed = True
        writer.close()
        server.close()
        return heard, closed

    return asyncio.run(run())


@pytest.mark.parametrize(
    "said", [(), (b"GET / HT",), (GET[:-2],), (b"GET / HTTP/1.1\r\n", 0.1, b"A: b\r\n", 0.1, b"C: d\r\n"), (GET, 0.1, GET[:-2])]
)
def test_half_a_head_is_not_waited_for(monkeypatch, said):
    """Nor where it comes drop by drop, nor behind a whole request."""
    _, closed = talk(monkeypatch, *said, 2 * HEAD_S)
    assert closed


def test_whoever_has_sent_a_head_is_waited_for(monkeypatch):
    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n"
    heard, closed = talk(monkeypatch, post + b"ab", 2 * HEAD_S, b"cd", 0.1)  # a body has a time of its own
    assert heard.endswith(b"\r\n\r\nabcd") and not closed
    heard, closed = talk(monkeypatch, GET, 0.1, GET, 0.1)
    assert heard.count(b"200 OK") == 2 and not closed
    assert talk(monkeypatch, GET[:-2], 0.1, b"\r\n", 2 * HEAD_S)[0].count(b"200 OK") == 1


def test_a_port_has_one_server_before_it_listens():
    """The first may be loading for minutes, and doesn't listen: the second is told at once."""
    first = serving.bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    for host in ("127.0.0.1", "0.0.0.0", "::1"):
        with pytest.raises(ConfigError, match=rf":{port} can't be listened on: .*; give another --host or --port"):
            serving.bind(host, port)
    for host, port in (("nowhere.invalid", 0), ("127.0.0.1", 2**20), ("256.1.1.1", 0)):
        with pytest.raises(ConfigError, match="can't be listened on"):
            serving.bind(host, port)
    first.close()
