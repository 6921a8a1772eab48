"""What the checks share: doubles of libraries that need not be installed.

A check imports this before the pair's code is loaded, so that the code's imports find the doubles. They hold just what
the pairs use, and behave like the originals as far as they go.
"""

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
