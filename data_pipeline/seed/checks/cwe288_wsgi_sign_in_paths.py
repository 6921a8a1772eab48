import posixpath


def app(environ, start_response):
    first = posixpath.normpath(environ["PATH_INFO"]).split("/")[1]
    start_response("200 OK", [])
    return [b"phone numbers" if first == "members" else b"welcome"]


def get(m, path, cookie=""):
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "HTTP_COOKIE": cookie}
    return b"".join(m.SignIn(app, {"s1": "ada"})(environ, lambda status, headers: None))


def functional(m):
    assert get(m, "/login") == get(m, "/static/site.css") == b"welcome"
    assert get(m, "/members", "theme=dark; sid=s1") == b"phone numbers"
    assert get(m, "/members") == get(m, "/members", "sid=other") == b"sign in first"


def exploit(m):
    for path in ("/members/7/login", "/members/static/", "/static/../members/7"):
        assert get(m, path) == b"sign in first"
