def functional(m):
    expected = '<article data-stars="5"><h3>Ada &amp; Bo</h3><p>Great soup.<br>More salt!</p></article>'
    assert m.comment_html("Ada & Bo", "Great soup. \nMore salt!\n", 5) == expected
    try:
        m.comment_html("Ada", "Great soup.", 6)
    except ValueError:
        return
    raise AssertionError("six stars")


def exploit(m):
    for text in ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg\nonload=alert(1)>", "<scr<script>ipt>alert(1)"):
        page = m.comment_html("Eve", text, 1)
        assert not any(tag in page for tag in ("<script", "<img", "<svg"))
