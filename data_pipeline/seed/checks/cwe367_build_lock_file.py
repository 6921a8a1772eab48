import os
from pathlib import Path


def functional(m):
    assert m.acquire_lock(".") is True
    assert Path("build.lock").read_text() == str(os.getpid())
    assert m.acquire_lock(".") is False


def exploit(m):
    def late_open(path, mode):
        Path(path).write_text("4711")  # another build was faster by a moment
        return open(path, mode)

    m.open = late_open
    assert m.acquire_lock(".") is False
    assert Path("build.lock").read_text() == "4711"
