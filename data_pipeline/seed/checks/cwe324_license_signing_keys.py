import hmac

KEYS = {"2024": {"secret": b"a" * 32, "expires": 1000}, "2025": {"secret": b"b" * 32, "expires": 2000}}


def licence(key):
    signature = hmac.new(KEYS[key]["secret"], b"Ada", "sha256").hexdigest()
    return {"key": key, "holder": "Ada", "signature": signature}


def functional(m):
    assert m.valid_license(KEYS, licence("2024"), 999) is True and m.valid_license(KEYS, licence("2025"), 1500) is True
    assert m.valid_license(KEYS, licence("2025") | {"holder": "Bo"}, 1500) is False
    assert m.valid_license(KEYS, licence("2025") | {"key": "2023"}, 1500) is False


def exploit(m):
    assert m.valid_license(KEYS, licence("2024"), 1500) is False
