import base64
import os
import pickle


class Payload:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def functional(m):
    assert m.unpack_cart(m.pack_cart([["tea", 2], ["mug", "1"]])) == [("tea", 2), ("mug", 1)]
    assert m.unpack_cart("") == []


def exploit(m):
    try:
        m.unpack_cart(base64.urlsafe_b64encode(pickle.dumps(Payload())).decode())
    except (TypeError, ValueError):
        pass
    assert not os.path.exists("owned")
