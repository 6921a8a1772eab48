import logging
from types import SimpleNamespace

records = []


class Keep(logging.Handler):
    def emit(self, record):
        records.append(record.getMessage())


def login(m, name, password):
    m.logger.handlers = [Keep()]
    m.logger.setLevel(logging.DEBUG)
    ada = SimpleNamespace(id=7, failed_logins=2, check_password=lambda text: text == "correct horse")
    return m.login({"ada": ada}, name, password)


def functional(m):
    user = login(m, "ada", "correct horse")
    assert user.id == 7 and user.failed_logins == 0
    assert login(m, "ada", "wrong") is None and login(m, "bo", "correct horse") is None
    assert len(records) == 3


def exploit(m):
    login(m, "ada", "correct hrose")
    login(m, "adda", "correct horse")
    assert len(records) == 2 and not any("correct h" in text for text in records)
