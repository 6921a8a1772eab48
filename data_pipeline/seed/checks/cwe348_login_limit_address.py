def environ(forwarded):
    return {"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": forwarded}


def functional(m):
    assert m.client_address(environ("198.51.100.4")) == "198.51.100.4"
    assert m.client_address({"REMOTE_ADDR": "127.0.0.1"}) == "127.0.0.1"
    assert m.allow_login(environ("198.51.100.4"), {"198.51.100.4": 9}) is True
    assert m.allow_login(environ("198.51.100.4"), {"198.51.100.4": 10}) is False


def exploit(m):
    failures = {}
    for attempt in range(40):
        forwarded = f"10.1.1.{attempt}, 203.0.113.66"
        if not m.allow_login(environ(forwarded), failures):
            return
        address = m.client_address(environ(forwarded))
        failures[address] = failures.get(address, 0) + 1
    raise AssertionError("40 attempts from one address")
