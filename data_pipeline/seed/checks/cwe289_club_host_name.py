def functional(m):
    assert m.dispatch({}) == (200, "programme.html")
    assert m.dispatch({"Host": "Shop.Club.Example.:8080"}) == (200, "shop.html")
    assert m.dispatch({"Host": "staff.club.example"}) == (401, "login.html")
    assert m.dispatch({"Host": "staff.club.example."}, "ada") == (200, "roster.html")
    assert m.dispatch({"Host": "staff.evil.example"}, "ada") == (404, "missing.html")


def exploit(m):
    for host in ("staff.club.example.", "STAFF.club.example.:443", "staff.club.example.."):
        assert m.dispatch({"Host": host})[1] != "roster.html"
