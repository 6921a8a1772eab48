import json
import os
from pathlib import Path

from click.testing import CliRunner


def answer(m):
    return CliRunner().invoke(m.configure, ["account.json"], input="mail.example\nann\ncorrect horse\n")


def functional(m):
    result = answer(m)
    assert result.exit_code == 0 and "saved the account ann at mail.example" in result.output
    saved = {"host": "mail.example", "user": "ann", "password": "correct horse"}
    assert json.loads(Path("account.json").read_text()) == saved
    assert os.stat("account.json").st_mode & 0o077 == 0


def exploit(m):
    assert "correct horse" not in answer(m).output
