import json
import os
from pathlib import Path

MESSAGES = [{"from": "ada", "text": "zoë?"}, {"from": "bo", "text": "here"}]


def functional(m):
    for _ in range(2):
        path = m.export_chat("7", MESSAGES, ".")
    assert Path(path).parent.name == "user-7"
    assert [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()] == MESSAGES


def exploit(m):
    os.umask(0o022)
    folder = Path(m.export_chat(7, MESSAGES, ".")).parent
    assert folder.stat().st_mode & 0o077 == 0
