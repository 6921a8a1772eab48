def functional(m):
    basket = m.Basket("ada", [("milk", 1)])
    basket.add("apples", 6)
    assert basket.lines() == ["6 x apples", "1 x milk"]
    basket.empty()
    assert basket.lines() == []
    try:
        basket.add("milk", 0)
    except ValueError:
        return
    raise AssertionError("no items added")


def exploit(m):
    m.Basket("ada").add("pregnancy test")
    assert m.Basket("bo").lines() == []
