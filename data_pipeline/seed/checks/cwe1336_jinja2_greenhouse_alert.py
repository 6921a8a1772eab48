def functional(m):
    html = m.alert_html({"nickname": "House 2"}, {"soil": 0.25})
    assert "<h2>Alert from House 2</h2>" in html and "<td>soil</td><td>0.25</td>" in html


def exploit(m):
    name = "{{ 7 * 191 }}{{ readings.__class__ }}"
    html = m.alert_html({"nickname": name}, {"soil": 0.25})
    assert "1337" not in html and "dict" not in html
