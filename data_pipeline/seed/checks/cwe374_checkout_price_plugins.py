def order():
    return {"customer": "ada", "lines": [{"sku": "lamp", "count": 2, "cents": 5000}]}


def functional(m):
    assert m.total_with_plugins(order(), []) == 10_000
    assert m.total_with_plugins(order(), [lambda seen: 5, lambda seen: 10 * (seen["customer"] == "ada"), lambda seen: 90]) == 9000


def exploit(m):
    def cheap(seen):
        seen["lines"][0]["cents"] = 1
        seen["customer"] = "eve"
        return 0

    placed = order()
    assert m.total_with_plugins(placed, [cheap]) == 10_000
    assert placed == order()
