import os
from pathlib import Path


def start(m):
    Path("state").mkdir(mode=0o755)
    os.fork = lambda: 0
    os.setsid = lambda: None
    return m.start_daemon("state")


def functional(m):
    assert start(m) == os.getpid()
    assert Path.cwd().name == "state" and Path("collector.pid").read_text() == f"{os.getpid()}\n"


def exploit(m):
    start(m)
    Path("readings.db").touch()
    for name in ("collector.pid", "readings.db"):
        assert os.stat(name).st_mode & 0o022 == 0
