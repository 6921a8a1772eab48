import asyncio
from types import SimpleNamespace

from doubles import HTTPError, module

posted = []


class FastAPI:
    def post(self, path):
        return lambda function: function


class AsyncClient:
    def __init__(self, timeout):
        pass

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        return None

    async def post(self, url, json):
        posted.append((url, json))
        return SimpleNamespace(is_success=True)


module("fastapi", FastAPI=FastAPI, HTTPException=HTTPError)
module("httpx", AsyncClient=AsyncClient)
module("ci.store", load_build=lambda number: SimpleNamespace(id=number, state="passed"))


def functional(m):
    url = "https://chat.buildfarm.example/hooks/7"
    assert asyncio.run(m.notify(12, url)) == {"delivered": True}
    assert posted == [(url, {"id": 12, "state": "passed"})]
    try:
        asyncio.run(m.notify(12, "file:///etc/passwd"))
    except HTTPError as error:
        if error.status_code == 400:
            return
    raise AssertionError("no HTTP address, but accepted")


def exploit(m):
    for url in ("http://169.254.169.254/latest", "http://127.0.0.1:6379/", "https://chat.buildfarm.example@10.0.0.5/"):
        try:
            asyncio.run(m.notify(12, url))
        except HTTPError:
            pass
    assert posted == []
