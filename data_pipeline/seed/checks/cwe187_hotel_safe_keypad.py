def functional(m):
    safe = m.Safe("482913")
    assert safe.unlock("482913") and not safe.unlock("482914")
    assert safe.unlock("482913")
    assert not any(safe.unlock("000000") for _ in range(3))
    assert not safe.unlock("482913")


def exploit(m):
    for digits in ("", "4", "48291"):
        assert not m.Safe("482913").unlock(digits)
