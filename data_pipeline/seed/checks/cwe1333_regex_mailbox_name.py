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
    assert m.mailbox_owner(" Ada.Byron-7@corp.example") == "ada.byron-7"
    assert m.mailbox_owner("ada@other.example") is None and m.mailbox_owner("@corp.example") is None


def exploit(m):
    assert within_two_seconds(m.mailbox_owner, "a" * 60 + "!") is None
