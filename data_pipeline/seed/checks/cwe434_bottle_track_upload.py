import os
from types import SimpleNamespace

from doubles import HTTPError, module

request = SimpleNamespace(files={})
module("bottle", HTTPError=HTTPError, request=request, post=lambda path: lambda function: function)


class Upload:
    def __init__(self, name):
        self.raw_filename = name

    def save(self, target, overwrite=False):
        with open(target, "wb") as file:
            file.write(b"data")


def upload(m, name):
    m.WEB_TRACKS = "tracks"
    os.makedirs("tracks", exist_ok=True)
    request.files = {"track": Upload(name)}
    try:
        return m.upload_track(7)["url"]
    except HTTPError:
        return None


def functional(m):
    assert upload(m, "Song.MP3") == "/tracks/7.mp3" and os.listdir("tracks") == ["7.mp3"]
    assert upload(m, "noname") is None


def exploit(m):
    for name in ("shell.php", "page.html", "a.mp3.phtml"):
        assert upload(m, name) is None
    assert os.listdir("tracks") == []
