GOOD = [b'{"meter": "m1", "kwh": 1.5}', b'{"meter": "m1", "kwh": 2}']


def functional(m):
    totals = {}
    assert m.consume([*GOOD, b'{"meter": "m2", "kwh": -1}'], totals) == 2
    assert totals == {"m1": 3.5}


def exploit(m):
    for bad in (b"{", b"[]", b'{"meter": "m1"}', b'{"meter": "m1", "kwh": null}', b"\xff\xfe", b"[" * 100_000):
        try:
            counted = m.consume([GOOD[0], bad, GOOD[1]], {})
        except Exception as error:
            raise AssertionError("one message stopped the service") from error
        assert counted == 2
