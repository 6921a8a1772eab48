def functional(m):
    bank = m.LockerBank("9173")
    bank.set_pin(11, "2580")
    assert bank.opens(11, "2580") and bank.opens(11, "9173") and not bank.opens(11, "0000")
    assert bank.opens(0, "0000") and not bank.opens(12, "9173")
    for locker, pin in ((13, "1111"), (-1, "1111"), (3, "12x4")):
        try:
            bank.set_pin(locker, pin)
        except ValueError:
            continue
        raise AssertionError(locker)


def exploit(m):
    bank = m.LockerBank("9173")
    bank.set_pin(4, "2580")
    try:
        bank.set_pin(12, "1111")
    except ValueError:
        pass
    assert not bank.opens(4, "1111")
