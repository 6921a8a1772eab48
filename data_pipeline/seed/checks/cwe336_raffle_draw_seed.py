PRIZES = ["bicycle", "hamper", "voucher", "book", "scarf", "mug"]


def functional(m):
    winners = m.draw_winners(range(1, 500), PRIZES)
    assert list(winners) == PRIZES and len(set(winners.values())) == 6
    assert all(1 <= ticket < 500 for ticket in winners.values())
    try:
        m.draw_winners([1, 1, 2], PRIZES)
    except ValueError:
        return
    raise AssertionError("a ticket won twice")


def exploit(m):
    draws = {tuple(m.draw_winners(range(1, 500), PRIZES).values()) for _ in range(4)}
    assert len(draws) > 1
