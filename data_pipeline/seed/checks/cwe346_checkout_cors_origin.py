def allowed(m, origin):
    headers = dict(m.cors_headers({"HTTP_ORIGIN": origin}))
    return headers.get("Access-Control-Allow-Origin") == origin


def functional(m):
    assert allowed(m, "https://tealeaf.example") and allowed(m, "https://gift.tealeaf.example:8443")
    assert not allowed(m, "http://tealeaf.example") and not allowed(m, "https://other.example") and not allowed(m, "https://[")
    assert m.cors_headers({}) == []


def exploit(m):
    assert not allowed(m, "https://eviltealeaf.example")
