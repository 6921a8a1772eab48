def functional(m):
    rental = {"state": "reserved", "steps": []}
    steps = ["paid", "handed_out", "inspected", "deposit_returned"]
    for step in steps:
        m.advance(rental, f" {step.upper()} ")
    assert rental == {"state": "deposit_returned", "steps": steps}
    assert m.advance({"state": "paid", "steps": ["paid"]}, "cancelled")["state"] == "cancelled"
    try:
        m.advance({"state": "paid", "steps": []}, "stolen")
    except ValueError:
        return
    raise AssertionError("unknown step")


def exploit(m):
    for state, step in (("reserved", "deposit_returned"), ("reserved", "handed_out"), ("cancelled", "paid"), ("handed_out", "cancelled")):
        rental = {"state": state, "steps": []}
        try:
            m.advance(rental, step)
        except ValueError:
            pass
        assert rental == {"state": state, "steps": []}, step
