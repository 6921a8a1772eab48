import hashlib
import json


def users(m):
    m.set_password("users.json", "ada", "letmein")
    with open("users.json") as file:
        return json.load(file)


def functional(m):
    first = users(m)["ada"]
    m.set_password("users.json", "bo", "letmein")
    later = users(m)
    assert set(later) == {"ada", "bo"} and later["ada"]["salt"] != first["salt"]
    assert all(len(bytes.fromhex(user["hash"])) == 64 for user in later.values())


def exploit(m):
    # What a single round of a fast hash makes of each guess must not be what is stored.
    user = users(m)["ada"]
    salt = bytes.fromhex(user["salt"])
    for name in ("md5", "sha1", "sha256", "sha512"):
        for data in (salt + b"letmein", b"letmein" + salt):
            assert hashlib.new(name, data).hexdigest() != user["hash"]
