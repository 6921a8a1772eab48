RECORDS = {"ann": {"team": ["dr_bo"], "notes": "asthma"}}


def functional(m):
    log = []
    assert m.open_record(RECORDS, "dr_bo", "ann", log)["notes"] == "asthma"
    assert log == [("dr_bo", "ann")]
    try:
        m.open_record(RECORDS, "dr_bo", "bob", log)
    except LookupError:
        return
    raise AssertionError("record of an unknown patient")


def exploit(m):
    log = []
    try:
        record = m.open_record(RECORDS, "dr_cy", "ann", log)
    except PermissionError:
        record = None
    assert record is None and log == [("dr_cy", "ann")]
