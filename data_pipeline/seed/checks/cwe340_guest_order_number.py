def functional(m):
    orders = {}
    first, second = m.place_order(orders, ["2 lamps"]), m.place_order(orders, ["1 rug"])
    assert first != second and m.order_status(orders, f" {second.upper()} ") == ("received", ["1 rug"])
    try:
        m.order_status(orders, "0")
    except LookupError:
        return
    raise AssertionError("an order for no id")


def exploit(m):
    orders = {}
    first, second = m.place_order(orders, ["2 lamps"]), m.place_order(orders, ["1 rug"])
    assert first.split("-")[3:] != second.split("-")[3:]
