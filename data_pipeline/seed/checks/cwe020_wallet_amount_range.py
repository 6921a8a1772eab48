from decimal import Decimal


def wallets():
    return {"balance": Decimal(10)}, {"balance": Decimal(3)}


def functional(m):
    source, target = wallets()
    assert m.transfer(source, target, "2.5") == Decimal("7.5") == source["balance"]
    assert target["balance"] == Decimal("5.5")
    for text in ("7.51", "many"):
        try:
            m.transfer(source, target, text)
        except ValueError:
            continue
        raise AssertionError(text)


def exploit(m):
    source, target = wallets()
    try:
        m.transfer(source, target, "-3")
    except ValueError:
        pass
    assert (source["balance"], target["balance"]) == (10, 3)
