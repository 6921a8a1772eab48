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


def functional(m):
    assert m.decode_frames(["12 7  3;\n", "5 ;", "x;", "1 2"]) == [[12, 7, 3], [5]]


def exploit(m):
    assert within_two_seconds(m.decode_frames, ["1" * 60 + "!"]) == []
