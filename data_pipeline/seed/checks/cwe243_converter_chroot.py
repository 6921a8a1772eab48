import os

calls = []


def convert(m, function):
    """With recording doubles of what only root may do, and without the child."""
    calls.clear()
    ended = []
    for name in ("chroot", "chdir", "setgroups", "setgid", "setuid"):
        setattr(os, name, lambda argument, name=name: calls.append((name, argument)))
    os.fork = lambda: 0
    os._exit = ended.append
    os.waitpid = lambda child, options: (child, ended[0] << 8)
    try:
        return m.convert_in("/srv/jail", 1001, 1002, function, "page.ps")
    except RuntimeError:
        return ended == [0]


def fail(source):
    raise RuntimeError(source)


def functional(m):
    done = []
    assert convert(m, done.append) is True and done == ["page.ps"]
    assert [call for call in calls if call[0] != "chdir"] == [
        ("chroot", "/srv/jail"),
        ("setgroups", []),
        ("setgid", 1002),
        ("setuid", 1001),
    ]
    assert convert(m, fail) is False


def exploit(m):
    convert(m, lambda source: calls.append(("convert", source)))
    inside = calls[calls.index(("chroot", "/srv/jail")) : calls.index(("convert", "page.ps"))]
    assert ("chdir", "/") in inside
