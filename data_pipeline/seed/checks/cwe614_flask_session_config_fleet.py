import os

from doubles import module

os.environ["FLEET_SECRET"] = "5d1c"


class Flask:
    def __init__(self, name):
        self.config = {"SESSION_COOKIE_SECURE": False, "SESSION_COOKIE_HTTPONLY": True}
        self.blueprints = []

    def register_blueprint(self, blueprint, url_prefix):
        self.blueprints.append((blueprint, url_prefix))


module("flask", Flask=Flask)
module("fleet.views", vehicles="vehicles")


def functional(m):
    app = m.create_app()
    assert app.config["SECRET_KEY"] == "5d1c" and app.config["SESSION_COOKIE_NAME"] == "fleet_session"
    assert app.blueprints == [("vehicles", "/vehicles")]


def exploit(m):
    assert m.create_app().config["SESSION_COOKIE_SECURE"] is True
