import hashlib
import hmac
import json

KEY = b"vendor key"


def licence(m, **extra):
    signed = json.dumps({"customer": "Ada Ltd", "seats": 3})
    mac = hmac.new(KEY, signed.encode(), hashlib.sha256).hexdigest()
    with open("licence.json", "w") as file:
        json.dump({"signed": signed, "mac": mac, **extra}, file)
    return m.read_licence("licence.json", KEY)


def functional(m):
    assert licence(m, label="Office 2") == {"customer": "Ada Ltd", "seats": 3, "label": "Office 2"}
    assert licence(m)["seats"] == 3
    try:
        licence(m, mac="0" * 64)
    except ValueError:
        return
    raise AssertionError("a wrong HMAC passed")


def exploit(m):
    assert licence(m, label="Office", seats=500)["seats"] == 3
