import os
import pwd
import socket
from types import SimpleNamespace

calls = []


class Listener:
    def close(self):
        calls.append(("close",))


def start(m, setuid=None):
    calls.clear()
    pwd.getpwnam = lambda user: {"sensors": SimpleNamespace(pw_uid=991, pw_gid=992)}[user]
    socket.create_server = lambda address, **options: calls.append(("listen", address[1])) or Listener()
    for name in ("setgroups", "setgid", "setuid", "umask", "chdir"):
        setattr(os, name, lambda argument, name=name: calls.append((name, argument)))
    if setuid:
        os.setuid = setuid
    return m.listen_as(443, "sensors")


def refuse(uid):
    raise PermissionError(uid)


def functional(m):
    assert isinstance(start(m), Listener)
    names = [call[0] for call in calls]
    assert ("setuid", 991) in calls and names.index("listen") < names.index("setgid") < names.index("setuid")
    assert ("umask", 0o077) in calls
    try:
        start(m, refuse)
    except PermissionError:
        assert calls[-1] == ("close",)
        return
    raise AssertionError("continued as root")


def exploit(m):
    start(m)
    assert ("setgroups", []) in calls[: calls.index(("setuid", 991))]
