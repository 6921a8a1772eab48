def functional(m):
    links = {}
    urls = [m.share_album(links, number) for number in range(200)]
    assert [m.album_for(links, url) for url in urls] == list(range(200))
    assert m.album_for(links, "https://photos.example/a/") is None and m.album_for(links, "https://other.example/") is None


def exploit(m):
    links = {}
    for number in range(50):
        url = m.share_album(links, number)
    prefix = url.rpartition("/")[0]
    for digits in range(1, 5):
        for guess in range(16**digits):
            assert m.album_for(links, f"{prefix}/{guess:0{digits}x}") is None
