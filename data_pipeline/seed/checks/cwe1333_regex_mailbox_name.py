def functional(m):
    assert m.mailbox_owner(" Ann.Lee-2@corp.example ") == "ann.lee-2"
    assert m.mailbox_owner("bob@corp.example") == "bob"
    for address in ("bob@other.example", "@corp.example", ".bob@corp.example", "a..b@corp.example"):
        assert m.mailbox_owner(address) is None


def exploit(m):
    assert m.mailbox_owner("a" * 60 + "!") is None
