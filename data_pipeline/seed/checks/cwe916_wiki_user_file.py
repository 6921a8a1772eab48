import hashlib
import json
from pathlib import Path


def guessed(salt, stored):
    """Whether one plain hash of salt and password gives what is stored, as a cracking program would try."""
    fast = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")
    texts = (salt + b"hunter2", b"hunter2" + salt, b"hunter2")
    return any(hashlib.new(name, text).digest() == stored for name in fast for text in texts)


def functional(m):
    m.set_password("users.json", "ann", "hunter2")
    m.set_password("users.json", "bob", "hunter2")
    users = json.loads(Path("users.json").read_text())
    assert set(users) == {"ann", "bob"} and users["ann"] != users["bob"]


def exploit(m):
    m.set_password("users.json", "ann", "hunter2")
    entry = json.loads(Path("users.json").read_text())["ann"]
    assert not guessed(bytes.fromhex(entry["salt"]), bytes.fromhex(entry["hash"]))
