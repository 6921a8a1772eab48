import warnings

warnings.simplefilter("ignore")


def functional(m):
    points = m.Points(2)
    points.earn(1, 500)
    assert points.redeem(1, 200) and points.redeem(1, 300)
    points.earn(1, 2**32 - 1)
    points.earn(1, 5)
    assert points.balance.tolist() == [0, 2**32 - 1]


def exploit(m):
    points = m.Points(1)
    points.earn(0, 10)
    assert not points.redeem(0, 11)
    assert points.balance.tolist() == [10]
