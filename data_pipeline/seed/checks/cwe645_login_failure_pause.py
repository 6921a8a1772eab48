def logins(m):
    return m.Logins(lambda name, password: password == "right")


def functional(m):
    service = logins(m)
    assert service.login("ann", "right", "192.0.2.1", 0) is True
    for second in range(4):
        assert service.login("ann", "wrong", "192.0.2.1", second) is False
    assert service.login("ann", "right", "192.0.2.1", 5) is True
    for second in range(10, 15):
        service.login("ann", "wrong", "192.0.2.1", second)
    assert service.login("ann", "right", "192.0.2.1", 20) is False
    assert service.login("ann", "right", "192.0.2.1", 14 + 600) is True


def exploit(m):
    service = logins(m)
    for second in range(100):
        service.login("ann", "wrong", "198.51.100.9", second)
    assert service.login("ann", "right", "192.0.2.1", 100) is True
