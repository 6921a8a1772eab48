def functional(m):
    assert m.parse_tags(" Tea,Mugs,cafe_1, ") == ["tea", "mugs", "cafe_1"]
    assert m.parse_tags("tea") == ["tea"]
    for text in ("tea;mugs", "", "tea mugs"):
        try:
            m.parse_tags(text)
        except ValueError:
            continue
        raise AssertionError(text)


def exploit(m):
    try:
        m.parse_tags("a" * 60 + "!")
    except ValueError:
        pass
