from types import SimpleNamespace

import jinja2
from doubles import module

REQUEST = SimpleNamespace(args={})


class Flask:
    def __init__(self, name):
        pass

    def get(self, rule):
        return lambda function: function


def render_template_string(source, **values):
    template = jinja2.Environment(autoescape=True).from_string(source)
    return template.render(config={"SECRET_KEY": "5d1c"}, **values)


module("flask", Flask=Flask, render_template_string=render_template_string, request=REQUEST)


def welcome(m, **args):
    REQUEST.args = args
    return m.welcome()


def functional(m):
    assert welcome(m) == "<h1>Welcome, traveller!</h1>"
    assert welcome(m, guest="Ann Lee") == "<h1>Welcome, Ann Lee!</h1>"


def exploit(m):
    assert "5d1c" not in welcome(m, guest="{{ config.SECRET_KEY }}")
    assert "42" not in welcome(m, guest="{{ 6 * 7 }}")
