def functional(m):
    thread = {"author": "A & B", "text": "first", "replies": [{"author": "cy", "text": "<b>"}]}
    assert m.render_comment(thread) == ["A &amp; B: first", "  cy: &lt;b&gt;"]


def exploit(m):
    thread = {"author": "eve", "text": "x"}
    for _ in range(20_000):
        thread = {"author": "eve", "text": "x", "replies": [thread]}
    try:
        lines = m.render_comment(thread)
    except RecursionError as error:
        raise AssertionError("one thread stops the page") from error
    assert 10 <= len(lines) < 20_000
