import json
from types import SimpleNamespace

from doubles import module

CREATED = []


def create_row(**fields):
    CREATED.append({"featured": False, **fields})
    return SimpleNamespace(pk=len(CREATED), **CREATED[-1])


module("django.contrib.auth.decorators", login_required=lambda view: view)
module("django.http", JsonResponse=lambda data, status=200: (status, data))
module("django.views.decorators.http", require_POST=lambda view: view)
module("market.models", Listing=SimpleNamespace(objects=SimpleNamespace(create=create_row)))
BIKE = {"title": "Bike", "text": "Blue", "price": "80"}


def create(m, fields):
    return m.create_listing(SimpleNamespace(user="ann", body=json.dumps(fields).encode()))


def functional(m):
    assert create(m, BIKE) == (201, {"id": 1, "title": "Bike"})
    assert CREATED == [{"seller": "ann", "featured": False, **BIKE}]


def exploit(m):
    create(m, {**BIKE, "featured": True})
    assert not any(listing["featured"] for listing in CREATED)
