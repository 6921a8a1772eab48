from pathlib import Path
from types import SimpleNamespace

from doubles import HTTPError, flask

request = SimpleNamespace()
flask(request, jsonify=lambda **values: values)


def price(function, quantity):
    request.get_json = lambda: {"quantity": quantity}
    try:
        return function()["total"]
    except (HTTPError, AssertionError):
        return None


def functional(m):
    assert price(m.price_tickets, 2) == 3700 and price(m.price_tickets, "8") == 14800
    assert price(m.price_tickets, 9) is None and price(m.price_tickets, "x") is None


def exploit(m):
    # As Python compiles it when it is started with -O.
    names = {"__name__": "tickets"}
    exec(compile(Path(m.__file__).read_text(encoding="utf-8"), "tickets.py", "exec", optimize=1), names)
    for quantity in (-5, 0, 9):
        assert price(names["price_tickets"], quantity) is None
