import threading
import time


class SlowSet(set):
    """Leaves other threads time between the look and what follows."""

    def __contains__(self, item):
        found = super().__contains__(item)
        time.sleep(0.2)
        return found


def functional(m):
    pool = m.VoucherPool(["A", "B"])
    assert pool.redeem("A", "ada") is True
    assert pool.redeem("A", "bo") is False and pool.redeem("C", "bo") is False
    assert pool.redeemed == [("A", "ada")] and pool.unused == {"B"}


def exploit(m):
    pool = m.VoucherPool([])
    pool.unused = SlowSet(["A"])
    results = []
    threads = [threading.Thread(target=lambda user=user: results.append(pool.redeem("A", user))) for user in ("ada", "bo", "cy")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count(True) == 1 and len(pool.redeemed) == 1
