def functional(m):
    album = m.Album("0420", ["beach.jpg"])
    assert album.open("1234") is None and album.failures == 1
    assert album.open("0420") == ["beach.jpg"] and album.failures == 0
    album.new_pin("7777")
    assert album.open("0420") is None and album.open("7777") == ["beach.jpg"]


def exploit(m):
    album = m.Album("4207", ["beach.jpg"])
    for guess in range(10_000):
        try:
            assert album.open(f"{guess:04}") is None
        except AssertionError:
            raise
        except Exception:
            return
    raise AssertionError("all PINs were tried")
