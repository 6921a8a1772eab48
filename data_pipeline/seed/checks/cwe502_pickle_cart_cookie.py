import base64
import os


def functional(m):
    items = [("lamp", 2), ("bulb", 10)]
    assert m.unpack_cart(m.pack_cart(items)) == items and m.unpack_cart("") == []


def exploit(m):
    stream = b"cposix\nmkdir\n(S'owned'\ntR."
    try:
        m.unpack_cart(base64.urlsafe_b64encode(stream).decode())
    except (ValueError, TypeError):
        pass
    assert not os.path.exists("owned")
