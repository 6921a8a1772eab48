import os
from pathlib import Path


def functional(m):
    Path("level.txt").write_text("(12, 4, 'orc')\n\n (3, 9, 'bat') \n")
    assert m.load_spawns("level.txt") == [(12, 4, "orc"), (3, 9, "bat")]


def exploit(m):
    Path("level.txt").write_text("(1, 2, __import__('os').mkdir('owned'))\n")
    try:
        m.load_spawns("level.txt")
    except (ValueError, SyntaxError):
        pass
    assert not os.path.exists("owned")
