SESSIONS = {"s1": {"name": "ada", "confirmed": True}, "s2": {"name": "eve", "confirmed": False}}


def ask(m, cookie):
    seen = []
    environ = {"HTTP_COOKIE": cookie} if cookie else {}
    body = b"".join(m.Gatekeeper(SESSIONS)(environ, lambda status, headers: seen.append((status, dict(headers)))))
    return *seen[0], body


def functional(m):
    assert ask(m, "theme=dark; session=s1") == ("204 No Content", {"X-Account": "ada"}, b"")
    assert ask(m, "session=s2")[2] == b"please confirm your address first"
    for cookie in ("", "session=s3", "theme=dark"):
        assert ask(m, cookie)[0].startswith("401")


def exploit(m):
    status, headers, _ = ask(m, "session=s2")
    assert not status.startswith("2") and "X-Account" not in headers
