def functional(m):
    html = m.alert_html({"nickname": "Bed 3"}, {"soil": 12, "a<b": "x&y"})
    assert "<h2>Alert from Bed 3</h2>" in html
    assert "<tr><td>soil</td><td>12</td></tr>" in html and "<td>a&lt;b</td><td>x&amp;y</td>" in html


def exploit(m):
    html = m.alert_html({"nickname": "{{ 6 * 7 }}{{ readings.__class__.__name__ }}"}, {})
    assert "42" not in html and "dict" not in html
