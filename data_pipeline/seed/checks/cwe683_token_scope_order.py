REGISTRY = {"unlock": ({"door", "write"}, lambda: "unlocked"), "ping": (frozenset(), lambda: "pong")}


def functional(m):
    assert m.call({"scopes": ["write", "door"]}, "unlock", REGISTRY) == "unlocked"
    assert m.call({"scopes": []}, "ping", REGISTRY) == "pong"
    try:
        m.call({"scopes": ["lamp", "read"]}, "unlock", REGISTRY)
    except PermissionError:
        return
    raise AssertionError("ran without the scopes")


def exploit(m):
    for scopes in ([], ["door"], ["write"]):
        try:
            m.call({"scopes": scopes}, "unlock", REGISTRY)
        except PermissionError:
            continue
        raise AssertionError(scopes)
