"""A stand-in for a teacher that listens while this process goes on."""

import asyncio
import contextlib
import threading

from demos.standin import serve


@contextlib.contextmanager
def listening(standin):
    """The URL of its API."""
    loop, up, urls = asyncio.new_event_loop(), threading.Event(), []

    async def start():
        server = await serve(standin)
        urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        up.set()

    def work():
        loop.create_task(start())
        loop.run_forever()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert up.wait(20)
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
