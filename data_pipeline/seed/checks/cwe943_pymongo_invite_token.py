from doubles import module

OPERATORS = {
    "$eq": lambda have, want: have == want,
    "$ne": lambda have, want: have != want,
    "$gt": lambda have, want: isinstance(have, type(want)) and have > want,
}


class Collection:
    def __init__(self, *documents):
        self.documents = list(documents)

    def find_one_and_delete(self, query):
        for document in self.documents:
            if all(self.matches(document.get(field), wanted) for field, wanted in query.items()):
                self.documents.remove(document)
                return document
        return None

    def matches(self, have, wanted):
        tests = wanted if isinstance(wanted, dict) and all(key in OPERATORS for key in wanted) else {"$eq": wanted}
        return all(OPERATORS[name](have, value) for name, value in tests.items())


module("pymongo.collection", Collection=Collection)
INVITE = {"email": "ann@a.example", "token": "t0ken", "role": "admin"}


def functional(m):
    invites = Collection(dict(INVITE), {"email": "bob@a.example", "token": "x"})
    assert m.claim_invite(invites, {"email": "ann@a.example", "token": "wrong"}) is None
    assert m.claim_invite(invites, {"email": "ann@a.example", "token": "t0ken"}) == "admin"
    assert m.claim_invite(invites, {"email": "ann@a.example", "token": "t0ken"}) is None
    assert m.claim_invite(invites, {"email": "bob@a.example", "token": "x"}) == "member"


def exploit(m):
    for token in ({"$ne": None}, {"$gt": ""}):
        invites = Collection(dict(INVITE))
        assert m.claim_invite(invites, {"email": "ann@a.example", "token": token}) is None
        assert invites.documents == [INVITE]
