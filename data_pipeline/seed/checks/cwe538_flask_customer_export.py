import csv
from pathlib import Path

from doubles import module


class Flask:
    """Serves everything below its `static_folder`."""

    def __init__(self, name):
        self.static_folder = str(Path("site/static").absolute())
        self.instance_path = str(Path("instance").absolute())


module("flask", Flask=Flask)
ROWS = [["Ann", "ann@a.example", "555-0100"], ["Bo, Jr.", "bo@a.example", ""]]


def functional(m):
    for _ in range(2):
        path = m.export_customers(ROWS)
        with open(path, newline="", encoding="utf-8") as file:
            assert list(csv.reader(file)) == [["name", "mail", "phone"], *ROWS]


def exploit(m):
    path = m.export_customers(ROWS)
    assert not Path(path).resolve().is_relative_to(m.app.static_folder)
