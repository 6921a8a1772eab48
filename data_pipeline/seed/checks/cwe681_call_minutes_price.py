def functional(m):
    account = {"cents": 30}
    assert m.bill_call(account, 120, 10) == 20
    assert account == {"cents": 10, "calls": 1}
    for seconds in (120, -1, float("nan")):
        try:
            m.bill_call(account, seconds, 10)
        except ValueError:
            continue
        raise AssertionError(seconds)


def exploit(m):
    account = {"cents": 1000}
    for _ in range(100):
        m.bill_call(account, 5.9, 10)
    assert account["cents"] < 1000
