from decimal import Decimal


def functional(m):
    assert m.split_bill("100", "3") == Decimal("33.33")
    assert m.split_bill("0.05", "2") == Decimal("0.03")
    for guests in ("-2", "two"):
        try:
            m.split_bill("100", guests)
        except ValueError:
            continue
        raise AssertionError(guests)


def exploit(m):
    for total in ("100", "0"):
        try:
            m.split_bill(total, "0")
        except ValueError:
            continue
        except ArithmeticError as error:
            raise AssertionError("no guests stopped the service") from error
