import os
from pathlib import Path

PROGRAM = """#!/bin/sh
[ "$1" = --keyring ] && [ "$(cat "$3")" = "good $(cat "$4")" ]
"""


def release(signature):
    Path("bin").mkdir()
    Path("plugins").mkdir()
    Path("bin/gpgv").write_text(PROGRAM)
    Path("bin/gpgv").chmod(0o755)
    os.environ["PATH"] = f"{Path('bin').absolute()}:{os.environ['PATH']}"
    Path("echo.zip").write_text("plugin")
    Path("echo.zip.sig").write_text(signature)


def functional(m):
    release("good plugin")
    assert m.install_release("echo.zip", "plugins") == Path("plugins/echo.zip")
    assert Path("plugins/echo.zip").read_text() == "plugin"


def exploit(m):
    release("forged")
    try:
        m.install_release("echo.zip", "plugins")
    except ValueError:
        pass
    assert not Path("plugins/echo.zip").exists()
