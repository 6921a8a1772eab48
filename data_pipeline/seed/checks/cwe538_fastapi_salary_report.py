import json
from pathlib import Path

from doubles import module


class FastAPI:
    def mount(self, path, app):
        self.served = app.directory


class StaticFiles:
    def __init__(self, directory):
        self.directory = directory


module("fastapi", FastAPI=FastAPI)
module("fastapi.staticfiles", StaticFiles=StaticFiles)


def report(m):
    served = m.app.served
    for name in ("PUBLIC", "PRIVATE"):
        folder = Path("." + str(getattr(m, name, "/unused")))
        folder.mkdir(parents=True, exist_ok=True)
        setattr(m, name, folder)
    return m.write_salary_report("3", {"ann": 5100}), Path("." + str(served))


def functional(m):
    path, _ = report(m)
    assert path.name == "salaries-03.json"
    assert json.loads(path.read_text()) == {"month": 3, "salaries": {"ann": 5100}}


def exploit(m):
    path, served = report(m)
    assert not path.resolve().is_relative_to(served.resolve())
