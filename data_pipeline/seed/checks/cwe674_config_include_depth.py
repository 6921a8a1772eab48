import json
from pathlib import Path


def write(m, **files):
    m.CONF_DIR = Path("conf")
    m.CONF_DIR.mkdir(exist_ok=True)
    for name, data in files.items():
        (m.CONF_DIR / f"{name}.json").write_text(json.dumps(data))


def functional(m):
    write(m, site={"include": ["base", "colours"], "port": 81}, base={"port": 80, "host": "a"}, colours={"theme": "dark"})
    assert m.load_settings("site") == {"port": 81, "host": "a", "theme": "dark"}


def exploit(m):
    write(m, one={"include": ["two"]}, two={"include": ["one"]})
    try:
        m.load_settings("one")
    except RecursionError:
        raise AssertionError("files that include each other exhaust the stack") from None
    except ValueError:
        pass
