CLERK = {"warehouses": {"Oslo"}}


def new_stock():
    return {"Oslo": {"lamp": 10}, "Bergen": {"lamp": 50}}


def refused(m, stock, source, target, count):
    try:
        m.move_stock(stock, CLERK, "lamp", source, target, count)
    except (ValueError, PermissionError):
        return True
    return False


def functional(m):
    stock = new_stock()
    assert m.move_stock(stock, CLERK, "lamp", "Oslo", "Bergen", 4) == 6
    assert stock == {"Oslo": {"lamp": 6}, "Bergen": {"lamp": 54}}
    assert refused(m, stock, "Oslo", "Bergen", 7) and refused(m, stock, "Bergen", "Oslo", 1) and refused(m, stock, "Oslo", "Rome", 1)


def exploit(m):
    stock = new_stock()
    assert refused(m, stock, "Oslo", "Bergen", -50) and stock == new_stock()
