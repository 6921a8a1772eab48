import sys
from pathlib import Path

READ = """
import os
for fd in {which}:
    try:
        data = os.read(fd, 100)
    except OSError:
        continue
    open("{to}", "ab").write(data)
"""


def build(m, test):
    Path("checkout").mkdir()
    Path("key").write_text("PRIVATE")
    release = [sys.executable, "-c", READ.format(which='[int(os.environ["KEY_FD"])]', to="signed")]
    return m.test_and_release([sys.executable, "-c", test], release, "checkout", "key")


def functional(m):
    assert build(m, "raise SystemExit(1)") is False
    assert not Path("checkout/signed").exists()
    Path("checkout").rmdir()
    assert build(m, "pass") is True
    assert Path("checkout/signed").read_text() == "PRIVATE"


def exploit(m):
    build(m, READ.format(which="range(3, 64)", to="stolen"))
    stolen = Path("checkout/stolen")
    assert not stolen.exists() or "PRIVATE" not in stolen.read_text()
