import os
from types import SimpleNamespace

from doubles import HTTPError, flask

request = SimpleNamespace(files={})
flask(request)


class Upload:
    def __init__(self, name):
        self.filename = name

    def save(self, target):
        with open(target, "wb") as file:
            file.write(b"data")


def upload(m, name):
    os.makedirs("static/avatars", exist_ok=True)
    request.files = {"picture": Upload(name)}
    try:
        return m.upload_avatar()[0]["avatar"]
    except HTTPError:
        return None


def functional(m):
    name = upload(m, "Me.PNG")
    assert name.endswith(".png") and os.listdir("static/avatars") == [name]
    assert upload(m, "shell.php") is None


def exploit(m):
    for name in ("shell.phtml", "page.html", "me.svg"):
        assert upload(m, name) is None
    assert os.listdir("static/avatars") == []
