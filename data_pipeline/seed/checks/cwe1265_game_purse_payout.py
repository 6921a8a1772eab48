def functional(m):
    purse, got = m.Purse(10), []
    assert purse.pay_out(4, got.append) == 6 and got == [4]
    for coins, deliver, error in ((7, got.append, ValueError), (-1, got.append, ValueError), (2, lambda coins: 1 / 0, ZeroDivisionError)):
        try:
            purse.pay_out(coins, deliver)
        except error:
            continue
        raise AssertionError(coins)
    assert purse.coins == 6 and got == [4]


def exploit(m):
    purse, got = m.Purse(10), []

    def greedy(coins):
        got.append(coins)
        if len(got) < 5:
            try:
                purse.pay_out(coins, greedy)
            except ValueError:
                pass

    purse.pay_out(10, greedy)
    assert sum(got) == 10 and purse.coins == 0
