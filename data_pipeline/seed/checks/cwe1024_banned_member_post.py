def refused(m, thread, member, banned):
    try:
        m.post_comment(thread, {"member": member}, "hi", banned)
    except PermissionError:
        return True
    return False


def functional(m):
    thread = []
    assert m.post_comment(thread, {"member": "7"}, " hello ", {8, 9}) == 1
    assert not refused(m, thread, "7", set())
    assert thread[0]["comment"] == "hello" and str(thread[0]["member"]) == "7" and len(thread) == 2
    try:
        m.post_comment(thread, {"member": "7"}, " ", set())
    except ValueError:
        return
    raise AssertionError("an empty comment")


def exploit(m):
    thread = []
    assert refused(m, thread, "8", {8, 9}) and refused(m, thread, "9", {8, 9})
    assert thread == []
