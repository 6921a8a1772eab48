FORM = {"address": "Ada Byron\n 12 Lamp Street \n", "copies": "5", "per_row": "2"}


def refused(m, **changes):
    try:
        m.label_rows(FORM | changes)
    except ValueError:
        return True
    return False


def functional(m):
    label = ("Ada Byron", "12 Lamp Street")
    assert m.label_rows(FORM) == [[label, label], [label, label], [label]]
    assert refused(m, copies="0") and refused(m, per_row="5") and refused(m, address=" ") and refused(m, copies="x")


def exploit(m):
    assert refused(m, copies="200000")
