def functional(m):
    assert m.limits_for("guest", {}) == {"upload_mb": 5, "albums": 1, "shared_links": 0}
    assert m.limits_for("member", {"albums": "25"})["albums"] == 25
    try:
        m.limits_for("guest", {"admin": 1})
    except KeyError:
        return
    raise AssertionError("unknown limit accepted")


def exploit(m):
    m.limits_for("guest", {"upload_mb": 100_000})
    assert m.limits_for("guest", {})["upload_mb"] == 5
    m.limits_for("guest", {})["albums"] = 99
    assert m.limits_for("guest", {})["albums"] == 1
