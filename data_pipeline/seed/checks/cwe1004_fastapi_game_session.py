from types import SimpleNamespace

from doubles import App, HTTPError, module


class Response:
    def __init__(self):
        self.cookies = {}

    def set_cookie(self, key, value, **options):
        self.cookies[key] = (value, options)


module("fastapi", FastAPI=App, Form=lambda: None, HTTPException=HTTPError, Response=Response)
players = {("ada", "correct horse"): SimpleNamespace(nickname="ada")}
module("chess_server.players", check_password=lambda *login: players.get(login), open_session=lambda player: f"sid-{player.nickname}")


def functional(m):
    response = Response()
    assert m.login(response, "ada", "correct horse") == {"nickname": "ada"} and response.cookies["game_sid"][0] == "sid-ada"
    try:
        m.login(response, "ada", "wrong")
    except HTTPError:
        return
    raise AssertionError("a wrong password")


def exploit(m):
    response = Response()
    m.login(response, "ada", "correct horse")
    assert response.cookies["game_sid"][1].get("httponly") is True
