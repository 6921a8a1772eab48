from types import SimpleNamespace

from doubles import flask, module

request = SimpleNamespace()
player = SimpleNamespace(nickname="ada", bio="", country="no", coins=10, is_admin=False)
flask(request, jsonify=lambda **values: values)
module("flask_login", current_user=player, login_required=lambda function: function)
module("arcade.models", db=SimpleNamespace(session=SimpleNamespace(commit=lambda: None)))


def update(m, **data):
    request.get_json = lambda: data
    return m.update_profile()


def functional(m):
    assert update(m, nickname="lovelace", country="uk") == {"nickname": "lovelace"}
    assert player.country == "uk" and player.bio == ""


def exploit(m):
    update(m, nickname="eve", coins=1_000_000, is_admin=True)
    assert player.coins == 10 and player.is_admin is False
