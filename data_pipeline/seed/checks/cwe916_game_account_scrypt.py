import hashlib


def guessed(salt, stored):
    """Whether one plain hash of salt and password gives what is stored, as a cracking program would try."""
    fast = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")
    texts = (salt + b"hunter2", b"hunter2" + salt, b"hunter2")
    return any(hashlib.new(name, text).digest() == stored for name in fast for text in texts)


def functional(m):
    account = m.Account("ann", "hunter2")
    assert account.matches("hunter2") and not account.matches("hunter3")
    assert account.salt != m.Account("bob", "hunter2").salt


def exploit(m):
    account = m.Account("ann", "hunter2")
    assert not guessed(account.salt, account.hash)
