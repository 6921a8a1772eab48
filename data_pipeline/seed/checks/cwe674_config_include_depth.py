import json
from pathlib import Path


def write(m, **files):
    m.CONF_DIR = Path("conf")
    m.CONF_DIR.mkdir()
    for name, data in files.items():
        (m.CONF_DIR / f"{name}.json").write_text(json.dumps(data))


def functional(m):
    write(m, base={"colour": "red", "rows": 5}, site={"include": ["base"], "rows": 9})
    assert m.load_settings("site") == {"colour": "red", "rows": 9}


def exploit(m):
    write(m, one={"include": ["two"]}, two={"include": ["one"]})
    try:
        m.load_settings("one")
    except ValueError:
        return
    except RecursionError as error:
        raise AssertionError("files that include each other") from error
    raise AssertionError("settings of a circle")
