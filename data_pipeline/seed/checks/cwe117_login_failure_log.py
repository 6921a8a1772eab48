import logging

lines = []


class Lines(logging.Handler):
    def emit(self, record):
        lines.extend(self.format(record).splitlines())


logging.getLogger("portal.auth").addHandler(Lines())
USERS = {"ada": {"id": 7, "active": True}, "bo": {"id": 8, "active": False}}


def functional(m):
    assert m.check_login(USERS, "ada", True) is True and lines == []
    assert m.check_login(USERS, "ada", False) is False and lines == ["wrong password for user id 7"]
    assert m.check_login(USERS, "bo", True) is False and "bo" in lines[1]


def exploit(m):
    m.check_login(USERS, "eve\nwrong password for user id 7", True)
    assert len(lines) == 1
