def functional(m):
    for address in ("93.184.216.34", "2001:db8::1", "172.32.0.1"):
        assert m.may_fetch(address) is True
    for address in ("10.0.0.5", "127.0.0.1", "172.16.9.9", "::1", "fe80::1", "example.org"):
        assert m.may_fetch(address) is False


def exploit(m):
    for address in ("::ffff:10.0.0.5", "::ffff:7f00:1", "::FFFF:169.254.169.254"):
        assert m.may_fetch(address) is False
