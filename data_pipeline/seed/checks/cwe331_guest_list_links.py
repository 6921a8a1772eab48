import time


def functional(m):
    lists = m.GuestLists()
    link = lists.share("Midsummer", ["Ada", "Bo"])
    prefix, token = link.rsplit("/", 1)
    assert prefix == "https://party.example/list" and lists.show(token) == ("Midsummer", ["Ada", "Bo"])
    now = time.time()
    time.time = lambda: now + 15 * 24 * 3600
    for unknown in (token, "x"):
        try:
            lists.show(unknown)
        except LookupError:
            continue
        raise AssertionError(unknown)


def exploit(m):
    lists = m.GuestLists()
    assert len({lists.share("Midsummer", []) for _ in range(40_000)}) == 40_000
