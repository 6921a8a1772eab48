from doubles import within_two_seconds


def functional(m):
    assert m.mailbox_owner(" Ada.Byron-7@corp.example") == "ada.byron-7"
    assert m.mailbox_owner("ada@other.example") is None and m.mailbox_owner("@corp.example") is None


def exploit(m):
    assert within_two_seconds(m.mailbox_owner, "a" * 60 + "!") is None
