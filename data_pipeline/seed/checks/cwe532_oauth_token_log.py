import logging
from types import SimpleNamespace

from doubles import module

module("requests")
records = []


class Keep(logging.Handler):
    def emit(self, record):
        records.append(record.getMessage())


def refresh(m):
    def post(url, data, auth, timeout):
        assert data == {"grant_type": "refresh_token", "refresh_token": "r3fresh"} and auth == ("client", "s3cret")
        answer = {"access_token": "acc3ss", "refresh_token": "n3xt", "expires_in": 3600}
        return SimpleNamespace(json=lambda: answer, raise_for_status=lambda: None)

    m.requests.post = post
    m.logger.handlers = [Keep()]
    m.logger.setLevel(logging.DEBUG)
    return m.refresh_access("https://auth.example/token", "client", "s3cret", "r3fresh")


def functional(m):
    assert refresh(m) == "acc3ss" and "3600" in records[0]


def exploit(m):
    refresh(m)
    text = "".join(records)
    assert text and not any(secret in text for secret in ("acc3ss", "n3xt", "r3fresh", "s3cret"))
