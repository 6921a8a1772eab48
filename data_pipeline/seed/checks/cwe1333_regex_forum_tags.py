from doubles import within_two_seconds


def refused(m, text):
    try:
        m.parse_tags(text)
    except ValueError:
        return True
    return False


def functional(m):
    assert m.parse_tags(" Lamps,DIY,") == ["lamps", "diy"] and m.parse_tags("oak") == ["oak"]
    assert refused(m, "a b") and refused(m, "a;b")


def exploit(m):
    assert within_two_seconds(refused, m, "a" * 60 + "!")
