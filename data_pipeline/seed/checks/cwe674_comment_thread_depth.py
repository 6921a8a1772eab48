def thread(depth):
    comment = {"author": "A<b>", "text": "hm", "replies": []}
    for _ in range(depth):
        comment = {"author": "B", "text": "x < y", "replies": [comment]}
    return comment


def functional(m):
    assert m.render_comment(thread(0)) == ["A&lt;b&gt;: hm"]
    assert m.render_comment(thread(2)) == ["B: x &lt; y", "  B: x &lt; y", "    A&lt;b&gt;: hm"]
    assert m.render_comment({"author": "C", "text": "no replies"}) == ["C: no replies"]


def exploit(m):
    try:
        lines = m.render_comment(thread(20_000))
    except RecursionError:
        raise AssertionError("a deep thread can't be shown") from None
    assert lines[0] == "B: x &lt; y"
