"""What the checks share: doubles of libraries that need not be installed, and what several of them need to try a pair's code.

A check imports this before the pair's code is loaded, so that the code's imports find the doubles. They hold just what
the pairs use, and behave like the originals as far as they go.
"""

import io
import signal
import sys
import types


def module(name, **names):
    """Put a module made of `names` (and its parent packages) into `sys.modules`, whether or not one is installed; return it."""
    parent = None
    for end in range(1, name.count(".") + 2):
        full = ".".join(name.split(".")[:end])
        if full not in sys.modules:
            sys.modules[full] = types.ModuleType(full)
            sys.modules[full].__path__ = []
            if parent is not None:
                setattr(parent, full.rpartition(".")[2], sys.modules[full])
        parent = sys.modules[full]
    vars(parent).update(names)
    return parent


class HTTPError(Exception):
    """What the doubles raise where a framework would answer with an error status."""

    def __init__(self, status_code, detail=None, **kwargs):
        super().__init__(status_code, detail)
        self.status_code = status_code
        self.detail = detail


class App:
    """An application or blueprint whose route decorators leave the functions as they are, to be called by the check."""

    static_folder = "static"

    def __init__(self, *args, **options):
        pass

    def get(self, *args, **options):
        return lambda function: function

    post = put = patch = delete = route = get


def abort(status):
    raise HTTPError(status)


def flask(request, **names):
    """The module `flask` with this request; responses are what the check makes of them."""
    return module("flask", Flask=App, Blueprint=App, abort=abort, request=request, **names)


def fetch(app, path, **options):
    """The answer of a tornado application, over loopback; options are those of tornado's `fetch`."""
    import asyncio

    from tornado.httpclient import AsyncHTTPClient
    from tornado.httpserver import HTTPServer
    from tornado.testing import bind_unused_port

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


class Stream:
    """One line to read, and what was written: an asyncio reader and writer in one."""

    def __init__(self, line):
        self.line = line
        self.written = b""

    async def readline(self):
        return self.line

    def write(self, data):
        self.written += data

    async def drain(self):
        return None

    def close(self):
        return None


def within_two_seconds(function, *args):
    """The function's result; its processor time decides, which grows without bound on one side and not on the other."""

    def stop(*frame):
        raise AssertionError("the pattern takes for ever")

    signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, 2)
    try:
        return function(*args)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


class Socket:
    """A request to read, and what was sent: all that http.server's handlers ask of a socket."""

    def __init__(self, request):
        self.request = request
        self.sent = b""

    def makefile(self, *mode):
        return io.BytesIO(self.request)

    def sendall(self, data):
        self.sent += data
