import io


def answer(m, path):
    """The lines of the answer to a GET request, without a server."""
    handler = m.WikiHandler.__new__(m.WikiHandler)
    handler.path, handler.request_version, handler.requestline = path, "HTTP/1.1", f"GET {path} HTTP/1.1"
    handler.client_address, handler.wfile = ("192.0.2.7", 4000), io.BytesIO()
    handler.do_GET()
    return handler.wfile.getvalue().decode().split("\r\n")


def functional(m):
    lines = answer(m, "/go?page=Front%20Desk")
    assert " 302 " in lines[0] and "Location: /wiki/Front%20Desk" in lines and lines[-2:] == ["", ""]
    assert "Location: /wiki/Home" in answer(m, "/go")


def exploit(m):
    lines = answer(m, "/go?page=x%0d%0aSet-Cookie:%20session=eve")
    assert not any(line.startswith("Set-Cookie") for line in lines)
