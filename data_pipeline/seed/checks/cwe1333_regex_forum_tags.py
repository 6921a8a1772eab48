import signal


def within_two_seconds(function, *args):
    """The function's result; its processor time decides, which grows without bound on one side and not on the other."""

    def stop(*frame):
        raise AssertionError("the pattern takes for ever")

    signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, 2)
    try:
        return function(*args)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def refused(m, text):
    try:
        m.parse_tags(text)
    except ValueError:
        return True
    return False


def functional(m):
    assert m.parse_tags(" Lamps,DIY,") == ["lamps", "diy"] and m.parse_tags("oak") == ["oak"]
    assert refused(m, "a b") and refused(m, "a;b")


def exploit(m):
    assert within_two_seconds(refused, m, "a" * 60 + "!")
