import json
from html.parser import HTMLParser


class Scripts(HTMLParser):
    def __init__(self):
        super().__init__()
        self.texts = []
        self.inside = False

    def handle_starttag(self, tag, attrs):
        self.inside = tag == "script"
        if self.inside:
            self.texts.append("")

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.texts[-1] += data


def settings(page):
    parser = Scripts()
    parser.feed(page)
    assert len(parser.texts) == 2, "another script"
    value = parser.texts[0].removeprefix("var settings = ").removesuffix(";")
    try:
        return json.loads(value)
    except ValueError as error:
        raise AssertionError("the script ends early") from error


def functional(m):
    page = m.map_page("Lakes & hills", {"places": ["Höhe", 'The "Nose"'], "zoom": 9})
    assert "<h1>Lakes &amp; hills</h1>" in page
    assert settings(page) == {"places": ["Höhe", 'The "Nose"'], "zoom": 9}


def exploit(m):
    places = ["</script><script>alert(1)</script>", "<!--<script>"]
    assert settings(m.map_page("Lakes", {"places": places})) == {"places": places}
