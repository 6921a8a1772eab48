def functional(m):
    for host in ("10.1.2.3", "127.0.0.1", "172.31.0.1", "192.168.7.7"):
        assert m.is_internal(host) is True
    for host in ("93.184.216.34", "172.32.0.1", "192.169.0.1", "12.0.0.5"):
        assert m.is_internal(host) is False
    for host in ("shop.example", "1.2.3.256", "", "::1"):
        try:
            m.is_internal(host)
        except ValueError:
            continue
        raise AssertionError(host)


def exploit(m):
    for host in ("012.0.0.5", "0177.0.0.1", "0300.0250.7.7"):
        try:
            assert m.is_internal(host) is True, host
        except ValueError:
            pass
