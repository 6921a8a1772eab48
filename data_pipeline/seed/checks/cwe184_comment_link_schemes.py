def functional(m):
    assert m.link_html(" https://example.org/?a=1&b=2", "A & B") == (
        '<a href="https://example.org/?a=1&amp;b=2" rel="nofollow">A &amp; B</a>'
    )
    assert m.link_html("javascript:alert(1)", "x") == "x"


def exploit(m):
    for url in ("data:text/html,<script>alert(1)</script>", "VBScript:MsgBox(1)"):
        assert "href" not in m.link_html(url, "x")
