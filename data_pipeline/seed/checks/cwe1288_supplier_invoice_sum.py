import json


def refused(m, total, *lines):
    rows = [{"item": "lamp", "count": count, "cents": cents} for count, cents in lines]
    try:
        m.read_invoice(json.dumps({"supplier": "Candela", "total": total, "lines": rows}))
    except ValueError:
        return True
    return False


def functional(m):
    text = '{"supplier": "Candela", "total": 1150, "lines": [{"item": "lamp", "count": 2, "cents": 500}, {"item": "bulb", "count": 1, "cents": 150}]}'
    assert m.read_invoice(text) == ("Candela", 1150, 2)
    assert refused(m, 0) and refused(m, -500, (-1, 500)) and refused(m, -5, (1, -5))


def exploit(m):
    assert refused(m, 10_000, (2, 500)) and refused(m, 0, (2, 500))
