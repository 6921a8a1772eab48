import base64
import hmac
import json
import os
import time

from doubles import module

os.environ["ARCHIVE_SECRET"] = "5d1c"


class BadSignature(Exception):
    pass


class SignatureExpired(BadSignature):
    pass


class URLSafeTimedSerializer:
    def __init__(self, secret, salt):
        self.key = f"{salt}.{secret}".encode()

    def sign(self, body):
        return hmac.new(self.key, body.encode(), "sha256").hexdigest()

    def dumps(self, value):
        body = base64.urlsafe_b64encode(json.dumps([value, time.time()]).encode()).decode()
        return f"{body}.{self.sign(body)}"

    def loads(self, text, max_age=None):
        body, _, mark = text.rpartition(".")
        if mark != self.sign(body):
            raise BadSignature
        value, made = json.loads(base64.urlsafe_b64decode(body))
        if max_age is not None and time.time() - made > max_age:
            raise SignatureExpired
        return value


module("itsdangerous", BadSignature=BadSignature, URLSafeTimedSerializer=URLSafeTimedSerializer)


def functional(m):
    token = m.make_login_token(7)
    assert m.user_from_token(token) == 7
    assert m.user_from_token(token + "0") is None and m.user_from_token("") is None


def exploit(m):
    token, now = m.make_login_token(7), time.time()
    time.time = lambda: now + 90 * 24 * 3600
    assert m.user_from_token(token) is None
