from doubles import Socket


def post(m, path, cookie):
    m.SESSIONS.add("sid=1")
    sock = Socket(f"POST {path} HTTP/1.0\r\nCookie: {cookie}\r\n\r\n".encode())
    m.AlbumHandler(sock, ("192.0.2.7", 4000), None)
    return sock.sent


def functional(m):
    m.ALBUMS.update(summer=["sea.jpg"], winter=["snow.jpg"])
    answer = post(m, "/albums/summer/delete", "sid=1")
    assert b" 303 " in answer and b"Location: /\r\n" in answer and list(m.ALBUMS) == ["winter"]
    assert b" 404 " in post(m, "/albums/spring/delete", "sid=1")
    assert b"Location: /login" in post(m, "/albums/spring/delete", "sid=2")


def exploit(m):
    m.ALBUMS.update(summer=["sea.jpg"])
    assert b"Location: /login" in post(m, "/albums/summer/delete", "sid=2")
    assert "summer" in m.ALBUMS
