import threading
from concurrent.futures import ThreadPoolExecutor


class Store(dict):
    meeting = None

    def get(self, seat):
        found = super().get(seat)
        if self.meeting is not None:
            try:
                self.meeting.wait(timeout=0.5)
            except threading.BrokenBarrierError:
                pass
        return found

    def put(self, seat, name):
        self[seat] = name

    def remove(self, seat):
        del self[seat]


def functional(m):
    plan = m.SeatPlan(Store())
    assert plan.reserve("C4", "ada") is True and plan.reserve("C4", "bo") is False
    try:
        plan.release("C4", "bo")
    except PermissionError:
        plan.release("C4", "ada")
    assert plan.reserve("C4", "bo") is True


def exploit(m):
    store = Store()
    store.meeting = threading.Barrier(2)
    plan = m.SeatPlan(store)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(plan.reserve, ["C4", "C4"], ["ada", "bo"]))
    assert sorted(results) == [False, True]
