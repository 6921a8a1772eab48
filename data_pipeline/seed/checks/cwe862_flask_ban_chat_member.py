from types import SimpleNamespace

from doubles import HTTPError, flask, module

user = SimpleNamespace(id=1, is_admin=True)
member = SimpleNamespace(id=8, banned=False)
flask(SimpleNamespace(form={"reason": "spam"}), jsonify=lambda **values: values)
module("flask_login", current_user=user, login_required=lambda function: function)
session = SimpleNamespace(get=lambda kind, number: member if number == 8 else None, commit=lambda: None)
module("community.models", Member=object, db=SimpleNamespace(session=session))


def ban(m, number):
    try:
        return m.ban_member(number)
    except HTTPError as error:
        return error.status_code


def functional(m):
    assert ban(m, 9) == 404 and ban(m, 8) == {"id": 8, "banned": True}
    assert member.ban_reason == "spam" and member.banned_by == 1


def exploit(m):
    user.is_admin = False
    assert ban(m, 8) == 403 and member.banned is False
