def refused(m, *headers):
    try:
        m.body_length(list(headers))
    except ValueError:
        return True
    return False


def functional(m):
    assert m.body_length([("Host", "a"), ("content-length", " 12 ")]) == 12
    assert m.body_length([("Transfer-Encoding", "Chunked")]) == -1 and m.body_length([("Host", "a")]) == 0
    assert refused(m, ("Content-Length", "+5")) and refused(m, ("Content-Length", "-1")) and refused(m, ("Transfer-Encoding", "gzip"))
    assert refused(m, ("Transfer-Encoding ", "chunked")) and refused(m, ("Transfer-Encoding", "\x0bchunked"))


def exploit(m):
    assert refused(m, ("Content-Length", "44"), ("Transfer-Encoding", "chunked"))
    assert refused(m, ("Content-Length", "0"), ("Content-Length", "44"))
    assert refused(m, ("Transfer-Encoding", "x"), ("Transfer-Encoding", "chunked"))
