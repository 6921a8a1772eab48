"""What the checks share: doubles of libraries that need not be installed, and a deadline.

A check imports this before the pair's code is loaded, so that the code's imports find the doubles. They hold just what
the pairs use, and behave like the originals as far as they go.
"""

import contextlib
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


class App:
    """A web application, blueprint or router. Its route decorators leave the view as it is, to be called directly."""

    def __init__(self, *args, **kwargs):
        self.config = {}

    def __getattr__(self, name):
        return lambda *args, **kwargs: lambda view: view


class HTTPError(Exception):
    """What the doubles raise where a framework would answer with an error status."""

    def __init__(self, status_code, detail=None, **kwargs):
        super().__init__(status_code, detail)
        self.status_code = status_code
        self.detail = detail


def _abort(status, *args):
    raise HTTPError(status)


def flask():
    """Double `flask`; the check fills `flask.request` (args, form, headers, ...) before it calls a view."""
    return module(
        "flask",
        Flask=App,
        Blueprint=App,
        request=types.SimpleNamespace(args={}, form={}, headers={}, files={}, cookies={}),
        session={},
        abort=_abort,
        jsonify=lambda *args, **kwargs: args[0] if args else kwargs,
        redirect=lambda url, code=302: ("redirect", url),
    )


def fastapi():
    """Double `fastapi`; views are called directly, with their parameters as arguments."""
    default = lambda value=None, **kwargs: value  # noqa: E731
    return module(
        "fastapi",
        FastAPI=App,
        APIRouter=App,
        HTTPException=HTTPError,
        Request=object,
        **{name: default for name in ("Body", "Cookie", "Depends", "File", "Form", "Header", "Query")},
    )


@contextlib.contextmanager
def deadline(seconds):
    """Fail the check (AssertionError) if the block takes longer."""

    def late(number, frame):
        raise AssertionError(f"still busy after {seconds} s")

    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
