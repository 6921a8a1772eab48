def functional(m):
    assert m.donor_record("name=Ada+L&group=ab&share=yes") == {"name": "Ada L", "group": "AB", "share_with_research": True}
    assert m.donor_record("name=Bo&group=x") == {"name": "Bo", "group": None, "share_with_research": False}
    try:
        m.donor_record("group=A")
    except ValueError:
        return
    raise AssertionError("no name")


def exploit(m):
    for answer in ("no", "false", "0"):
        assert m.donor_record(f"name=Ada&share={answer}")["share_with_research"] is False
