import os


def functional(m):
    mapper = m.row_mapper(["sku", " price "])
    assert mapper([" A1 ", "2.50"]) == {"sku": "A1", "price": "2.50"}
    try:
        m.row_mapper(["sku", " "])
    except ValueError:
        return
    raise AssertionError("empty name accepted")


def exploit(m):
    header = "sku': __import__('os').mkdir('owned'), 'x"
    try:
        m.row_mapper([header])(["A1"])
    except ValueError:
        pass
    assert not os.path.exists("owned")
