import io
import logging
from types import SimpleNamespace


def login(m, name, password):
    users = {"ann": SimpleNamespace(id=3, failed_logins=2, check_password=lambda given: given == "right horse")}
    stream = io.StringIO()
    logging.basicConfig(stream=stream, level=logging.DEBUG)
    return m.login(users, name, password), stream.getvalue()


def functional(m):
    user, log = login(m, "ann", "right horse")
    assert user.id == 3 and user.failed_logins == 0 and "3" in log
    user, log = login(m, "bob", "x")
    assert user is None


def exploit(m):
    for name, password in (("ann", "right hrose"), ("ann", "right horse"), ("bob", "sesame7")):
        assert password not in login(m, name, password)[1]
