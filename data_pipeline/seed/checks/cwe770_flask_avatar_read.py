import io
from pathlib import Path
from types import SimpleNamespace

from doubles import HTTPError, flask

request = SimpleNamespace()
flask(request)


class Body(io.BytesIO):
    taken = 0

    def read(self, *size):
        data = super().read(*size)
        self.taken += len(data)
        return data


def put(m, size):
    m.AVATARS = Path(".")
    request.stream = Body(b"x" * size)
    try:
        return m.put_avatar(7)[1]
    except HTTPError as error:
        return error.status_code


def functional(m):
    assert put(m, 1000) == 204 and len(Path("7.png").read_bytes()) == 1000
    assert put(m, 600 * 1024) == 413


def exploit(m):
    assert put(m, 30_000_000) == 413 and request.stream.taken < 1_000_000
