from types import SimpleNamespace

ACCOUNT = SimpleNamespace(pw_name="signer", pw_uid=1001, pw_gid=1001)


def load(m, key):
    """The key, and the effective and the saved ids, user and group, that the process ends with."""
    ids = {"uid": [0, 0], "gid": [0, 0]}

    def change(which, both):
        def function(value):
            ids[which] = [value, value if both else ids[which][1]]

        return function

    m.os.setuid, m.os.seteuid = change("uid", True), change("uid", False)
    m.os.setgid, m.os.setegid = change("gid", True), change("gid", False)
    m.os.setgroups = lambda groups: None
    with open("key", "wb") as file:
        file.write(key)
    return m.load_key("key", ACCOUNT), ids


def functional(m):
    key, ids = load(m, b"k" * 32)
    assert key == b"k" * 32 and ids["uid"][0] == ids["gid"][0] == 1001
    try:
        load(m, b"short")
    except ValueError:
        return
    raise AssertionError("a short key was accepted")


def exploit(m):
    _, ids = load(m, b"k" * 32)
    assert 0 not in ids["uid"] and 0 not in ids["gid"]
