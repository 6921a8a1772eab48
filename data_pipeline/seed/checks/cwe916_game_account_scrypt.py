import hashlib


def functional(m):
    account = m.Account("ada", "correct horse")
    assert account.matches("correct horse") and not account.matches("wrong")
    assert m.Account("ada", "correct horse").hash != account.hash


def exploit(m):
    # What a single round of a fast hash makes of each guess must not be what is stored.
    account = m.Account("ada", "letmein")
    for name in ("md5", "sha1", "sha256", "sha512"):
        for data in (account.salt + b"letmein", b"letmein" + account.salt):
            assert hashlib.new(name, data).digest() != account.hash
