def functional(m):
    accounts = {"c1": 50}
    assert m.redeem(accounts, "c1", 20) == 30
    assert m.redeem(accounts, "c1", 30) == 0
    assert accounts == {"c1": 0} and not m.LOCK.locked()


def exploit(m):
    for card, points in (("c1", 99), ("c9", 1)):
        try:
            m.redeem({"c1": 50}, card, points)
        except (LookupError, ValueError):
            pass
        assert not m.LOCK.locked()
