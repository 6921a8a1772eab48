import asyncio
import ipaddress

from doubles import Stream


def answer(m, line):
    stream = Stream(line)
    asyncio.run(m.handle(stream, stream))
    return stream.written


def functional(m):
    assert answer(m, b"370\n") == b"ok\n" and m.MOUNT["azimuth"] == 10
    assert answer(m, b"north\n") == b"error\n" and m.MOUNT["azimuth"] == 10


def exploit(m):
    places = []

    class Stopped(Exception):
        pass

    async def start_server(handler, host, port):
        places.append(host)
        raise Stopped

    m.asyncio.start_server = start_server
    try:
        asyncio.run(m.main())
    except Stopped:
        pass
    assert len(places) == 1 and ipaddress.ip_address(places[0]).is_loopback
