import errno
import logging
from types import SimpleNamespace

logging.disable(logging.CRITICAL)
ADA = SimpleNamespace(pw_name="ada", pw_uid=1001, pw_gid=100)


def system(m, fails):
    calls = []

    def change(name):
        def function(value):
            if name == fails:
                raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
            calls.append((name, value))

        return function

    for name in ("setgroups", "setgid", "setuid"):
        setattr(m.os, name, change(name))
    return calls


def functional(m):
    calls = system(m, None)
    assert m.run_job(ADA, lambda: 42) == 42
    assert calls == [("setgroups", [100]), ("setgid", 100), ("setuid", 1001)]


def exploit(m):
    ran = []
    for name in ("setgroups", "setgid", "setuid"):
        system(m, name)
        try:
            m.run_job(ADA, lambda: ran.append(1))
        except OSError:
            pass
        assert not ran
