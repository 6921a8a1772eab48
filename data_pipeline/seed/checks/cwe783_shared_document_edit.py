def document(locked):
    return {"title": "Lease", "owners": ["ann"], "editors": ["bob"], "locked": locked, "text": "v1", "revision": 1, "history": []}


def refused(m, paper, user):
    try:
        m.save_text(paper, user, "v2")
    except PermissionError:
        return paper["text"] == "v1"
    return False


def functional(m):
    for user in ("ann", "bob"):
        paper = document(False)
        assert m.save_text(paper, user, "v2") == 2
        assert paper["text"] == "v2" and paper["history"] == [(user, "v1")]
    assert refused(m, document(False), "eve") and refused(m, document(True), "bob")


def exploit(m):
    assert refused(m, document(True), "ann")
