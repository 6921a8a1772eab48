class Recorder:
    def __init__(self, number, taken):
        self.number, self.taken = number, taken

    def __enter__(self):
        self.taken.append(self.number)

    def __exit__(self, *error):
        return None


def functional(m):
    ann, bob = m.Holder(1, 10), m.Holder(2, 0)
    m.transfer(ann, bob, 4)
    assert (ann.credits, bob.credits) == (6, 4)
    for source, target, credits in ((ann, bob, 7), (ann, ann, 1), (ann, bob, -1)):
        try:
            m.transfer(source, target, credits)
        except ValueError:
            assert not ann.lock.locked() and not bob.lock.locked()
            continue
        raise AssertionError(credits)


def exploit(m):
    ann, bob, taken = m.Holder(1, 10), m.Holder(2, 10), []
    ann.lock, bob.lock = Recorder(1, taken), Recorder(2, taken)
    m.transfer(ann, bob, 1)
    m.transfer(bob, ann, 1)
    assert taken[:2] == taken[2:]
