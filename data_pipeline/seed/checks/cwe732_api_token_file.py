import json
import os


def store(m):
    os.umask(0o022)
    return m.store_token("t0ken", "token.json")


def functional(m):
    assert store(m) == "token.json" and store(m) == "token.json"
    with open("token.json") as file:
        record = json.load(file)
    assert record["token"] == "t0ken" and record["saved"] > 0


def exploit(m):
    store(m)
    assert os.stat("token.json").st_mode & 0o077 == 0
