CATALOGUE = {"Hamlet": {"stalls": 4500, "circle": 2500}}
FORM = {"show": "Hamlet", "category": "stalls", "price": "4500", "seats": "2"}


def functional(m):
    booking = m.book(CATALOGUE, FORM)
    assert booking["total"] == 9000 and booking["seats"] == 2 and booking["show"] == "Hamlet"
    for wrong in ({"seats": "0"}, {"seats": "11"}, {"category": "box"}, {"price": "x"}):
        try:
            m.book(CATALOGUE, FORM | wrong)
        except ValueError:
            continue
        raise AssertionError(wrong)


def exploit(m):
    for price in ("1", "0", "-4500"):
        try:
            booking = m.book(CATALOGUE, FORM | {"price": price})
        except ValueError:
            continue
        assert booking["total"] == 9000
