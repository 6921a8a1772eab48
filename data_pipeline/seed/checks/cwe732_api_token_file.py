import json
import os


def functional(m):
    for token in ("t1", "t2"):
        assert m.store_token(token, "token.json") == "token.json"
        with open("token.json") as file:
            record = json.load(file)
        assert record["token"] == token and record["saved"] > 1_600_000_000


def exploit(m):
    os.umask(0o002)
    m.store_token("t1", "token.json")
    assert os.stat("token.json").st_mode & 0o077 == 0
