import os
from datetime import timedelta
from types import SimpleNamespace

os.environ["HELPDESK_SECRET"] = "5d1c"


def configured(m):
    return m.configure_sessions(SimpleNamespace(config={}, secret_key=None))


def functional(m):
    app = configured(m)
    assert app.secret_key == "5d1c"
    assert app.config["SESSION_COOKIE_NAME"] == "helpdesk_sid" and app.config["SESSION_COOKIE_SECURE"] is True
    assert app.config["PERMANENT_SESSION_LIFETIME"] == timedelta(hours=8)


def exploit(m):
    assert configured(m).config.get("SESSION_COOKIE_HTTPONLY", True) is True
