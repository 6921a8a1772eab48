from html.parser import HTMLParser


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        assert tag == "a"
        self.links.append(dict(attrs))

    def handle_data(self, data):
        self.text += data


def parse(m, text):
    parser = Links()
    parser.feed(m.render_links(text))
    parser.close()
    assert parser.text == text
    return parser.links


def functional(m):
    first, second = parse(m, "See http://a.example/?x=1&y=2, or (<b>) https://b.example.")
    assert first["href"] == "http://a.example/?x=1&y=2" and second["href"] == "https://b.example"
    assert first["target"] == "_blank" and parse(m, "no <links>") == []


def exploit(m):
    (link,) = parse(m, "look: https://evil.example/x")
    assert "noopener" in link.get("rel", "").split() or "noreferrer" in link.get("rel", "").split()
