def refused(m, text):
    try:
        m.display_name(text)
    except ValueError:
        return True
    return False


def functional(m):
    assert m.display_name("  Ａｄａ ") == "Ada"
    assert refused(m, "a<b") and refused(m, " ") and refused(m, "x" * 41)


def exploit(m):
    text = "＜script＞alert(1)＜/script＞"
    assert refused(m, text) or "<" not in m.display_name(text)
