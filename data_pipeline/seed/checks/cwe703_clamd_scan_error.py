import logging

from doubles import module

logging.disable(logging.CRITICAL)


class Scanner:
    down = False

    def __init__(self, path):
        pass

    def instream(self, stream):
        if self.down:
            raise ConnectionRefusedError("clamd isn't running")
        return {"stream": ("FOUND", "Test") if b"virus" in stream.read() else ("OK", None)}


module("clamd", ClamdUnixSocket=Scanner)


def functional(m):
    assert m.is_clean(b"holiday pictures") is True and m.is_clean(b"a virus") is False


def exploit(m):
    Scanner.down = True
    assert m.is_clean(b"a virus") is False
