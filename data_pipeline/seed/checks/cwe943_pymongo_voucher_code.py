from types import SimpleNamespace

from doubles import HTTPError, flask, module

request = SimpleNamespace()
flask(request, jsonify=lambda **values: values)


class Vouchers:
    """As much of a collection as the query needs: equality, and the operators $ne and $gt."""

    def __init__(self):
        self.documents = [{"code": "SUMMER-7", "used": False, "amount": 500}]

    def find_one_and_update(self, query, update):
        for document in self.documents:
            if all(self.fits(document[field], wanted) for field, wanted in query.items()):
                document.update(update["$set"])
                return document
        return None

    def fits(self, value, wanted):
        if not isinstance(wanted, dict):
            return value == wanted
        tests = {"$ne": lambda other: value != other, "$gt": lambda other: isinstance(other, str) and value > other}
        return all(tests[name](other) for name, other in wanted.items())


module("pymongo", MongoClient=lambda url: SimpleNamespace(shop=SimpleNamespace(vouchers=Vouchers())))


def redeem(m, code):
    request.get_json = lambda: {"code": code}
    try:
        return m.redeem()["amount"]
    except HTTPError as error:
        return error.status_code


def functional(m):
    assert redeem(m, "WINTER-1") == 404 and redeem(m, "SUMMER-7") == 500 and redeem(m, "SUMMER-7") == 404


def exploit(m):
    for code in ({"$ne": None}, {"$gt": ""}):
        assert redeem(m, code) == 404
