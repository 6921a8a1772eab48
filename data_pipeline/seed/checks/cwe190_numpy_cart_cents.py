import numpy as np


def functional(m):
    assert m.cart_total(np.array([250, 1999], np.int32), [2, 1]) == 2499
    for counts in ([0, 1], [1], [100_001, 1]):
        try:
            m.cart_total(np.array([250, 1999], np.int32), counts)
        except ValueError:
            continue
        raise AssertionError(counts)


def exploit(m):
    assert m.cart_total(np.array([99_999], np.int32), [42_950]) == 99_999 * 42_950
