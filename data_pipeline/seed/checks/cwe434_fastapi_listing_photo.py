import asyncio
from pathlib import Path
from types import SimpleNamespace

from doubles import App, HTTPError, module

module("fastapi", FastAPI=App, HTTPException=HTTPError, UploadFile=object)


def upload(m, name, kind):
    async def read():
        return b"data"

    m.MEDIA = Path("media")
    m.MEDIA.mkdir(exist_ok=True)
    try:
        return asyncio.run(m.add_photo(SimpleNamespace(filename=name, content_type=kind, read=read)))["photo"]
    except HTTPError:
        return None


def functional(m):
    name = upload(m, "Kitchen.JPG", "image/jpeg")
    assert name.endswith(".jpg") and (m.MEDIA / name).read_bytes() == b"data"
    assert upload(m, "notes.txt", "text/plain") is None


def exploit(m):
    assert upload(m, "page.html", "image/png") is None
    assert list(m.MEDIA.iterdir()) == []
