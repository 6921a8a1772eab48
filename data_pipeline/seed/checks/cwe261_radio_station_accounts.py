import base64
import json


def functional(m):
    m.add_account("a.jsonl", "ada", "old")
    m.add_account("a.jsonl", "ada", "pearl diver")
    assert m.log_in("a.jsonl", "ada", "pearl diver") is True
    assert m.log_in("a.jsonl", "ada", "old") is False
    assert m.log_in("a.jsonl", "bo", "old") is False


def exploit(m):
    m.add_account("a.jsonl", "ada", "pearl diver")
    with open("a.jsonl") as file:
        stored = json.loads(file.readline())["password"]
    for decode in (str.encode, base64.b64decode, base64.b85decode, bytes.fromhex):
        try:
            raw = decode(stored)
        except ValueError:
            continue
        assert b"pearl diver" not in raw
