import datetime
from types import SimpleNamespace

from doubles import HTTPError, module

USER = SimpleNamespace(id=1)


class Blueprint:
    def __init__(self, name, module_name):
        pass

    def get(self, rule):
        return lambda function: function


class Query:
    def __init__(self, rows):
        self.rows = rows

    def filter_by(self, **wanted):
        return Query([row for row in self.rows if all(getattr(row, name) == value for name, value in wanted.items())])

    def first_or_404(self):
        if not self.rows:
            raise HTTPError(404)
        return self.rows[0]

    def get_or_404(self, number):
        return self.filter_by(id=number).first_or_404()


class Invoice:
    query = Query(
        [
            SimpleNamespace(id=10, user_id=1, number="A-10", due=datetime.date(2026, 5, 1), total=12.5),
            SimpleNamespace(id=20, user_id=2, number="B-20", due=datetime.date(2026, 6, 1), total=99),
        ]
    )


module("flask", Blueprint=Blueprint, jsonify=dict)
module("flask_login", current_user=USER, login_required=lambda function: function)
module("billing.models", Invoice=Invoice)


def functional(m):
    assert m.show_invoice(10) == {"number": "A-10", "due": "2026-05-01", "total": "12.5"}
    try:
        m.show_invoice(30)
    except HTTPError as error:
        if error.status_code == 404:
            return
    raise AssertionError("an invoice that doesn't exist")


def exploit(m):
    try:
        shown = m.show_invoice(20)
    except HTTPError:
        return
    assert shown["number"] != "B-20"
