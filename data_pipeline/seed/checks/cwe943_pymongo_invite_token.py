from doubles import module


class Collection:
    """As much of a collection as the query needs: equality, and the operators $eq, $ne and $gt."""

    def __init__(self, *documents):
        self.documents = list(documents)

    def find_one_and_delete(self, query):
        for document in self.documents:
            if all(self.fits(document.get(field), wanted) for field, wanted in query.items()):
                self.documents.remove(document)
                return document
        return None

    def fits(self, value, wanted):
        if not isinstance(wanted, dict):
            return value == wanted
        tests = {
            "$eq": lambda other: value == other,
            "$ne": lambda other: value != other,
            "$gt": lambda other: isinstance(other, str) and value > other,
        }
        return all(tests[name](other) for name, other in wanted.items())


module("pymongo.collection", Collection=Collection)


def invites():
    return Collection({"email": "ada@example.org", "token": "t0ken", "role": "editor"}, {"email": "bo@example.org", "token": "n3kot"})


def functional(m):
    invited = invites()
    assert m.claim_invite(invited, {"email": "ada@example.org", "token": "t0ken"}) == "editor"
    assert m.claim_invite(invited, {"email": "ada@example.org", "token": "t0ken"}) is None
    assert m.claim_invite(invited, {"email": "bo@example.org", "token": "n3kot"}) == "member"


def exploit(m):
    for token in ({"$ne": None}, {"$gt": ""}):
        assert m.claim_invite(invites(), {"email": "ada@example.org", "token": token}) is None
