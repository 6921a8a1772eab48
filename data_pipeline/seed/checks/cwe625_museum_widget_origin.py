def functional(m):
    headers = dict(m.cors_headers("https://shop.museum.example"))
    assert headers["Access-Control-Allow-Origin"] == "https://shop.museum.example"
    assert headers["Vary"] == "Origin"
    for origin in (None, "null", "http://shop.museum.example", "https://other.example"):
        assert m.cors_headers(origin) == []


def exploit(m):
    for origin in ("https://my-museum.example", "https://evil.example/.museum.example", "https://shop.museumXexample"):
        assert m.cors_headers(origin) == [], origin
