def document():
    return {"roles": {"ada": "owner", "eve": "editor", "bo": "reader"}}


def refused(m, shared, *change):
    try:
        m.share(shared, *change)
    except PermissionError:
        return True
    return False


def functional(m):
    shared = document()
    assert m.share(shared, "ada", "cy", "owner") is True and m.share(shared, "eve", "bo", "editor") is True
    assert m.share(shared, "eve", "bo", "editor") is False
    assert shared["roles"] == {"ada": "owner", "eve": "editor", "bo": "editor", "cy": "owner"}
    assert refused(m, document(), "bo", "cy", "reader") and refused(m, document(), "mallory", "cy", "reader")


def exploit(m):
    shared = document()
    assert refused(m, shared, "eve", "eve2", "owner") and refused(m, shared, "eve", "eve", "owner")
    assert refused(m, shared, "eve", "ada", "reader")
    assert shared == document()
