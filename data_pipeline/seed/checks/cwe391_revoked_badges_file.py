from pathlib import Path

MEMBERS = {"1001", "1002"}


def functional(m):
    assert m.may_enter("1001", MEMBERS, "revoked.txt") and not m.may_enter("1003", MEMBERS, "revoked.txt")
    Path("revoked.txt").write_text("1002\n\n")
    assert m.revoked_badges("revoked.txt") == {"1002"}
    assert m.may_enter("1001", MEMBERS, "revoked.txt") and not m.may_enter("1002", MEMBERS, "revoked.txt")


def exploit(m):
    Path("damaged.txt").write_bytes(b"1002\n\xff\n")
    Path("folder").mkdir()
    for path in ("damaged.txt", "folder"):
        try:
            entered = m.may_enter("1002", MEMBERS, path)
        except (OSError, ValueError):
            continue
        assert not entered
