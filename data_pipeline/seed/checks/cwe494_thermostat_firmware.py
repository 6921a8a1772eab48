import hashlib
import io
import os

IMAGE = b"THRM heat to 20 degrees"
RELEASE = {"url": "https://firmware.example/2.1", "version": "2.1", "sha256": hashlib.sha256(IMAGE).hexdigest()}


def fetch(m, image):
    m.urllib.request.urlopen = lambda url, timeout: io.BytesIO(image)
    return m.fetch_firmware(RELEASE, "slot")


def functional(m):
    assert fetch(m, IMAGE) == len(IMAGE)
    with open("slot", "rb") as file:
        assert file.read() == IMAGE
    try:
        fetch(m, b"<html>not found</html>")
    except RuntimeError:
        return
    raise AssertionError("not an image")


def exploit(m):
    try:
        fetch(m, b"THRM heat to 90 degrees")
    except RuntimeError:
        pass
    assert not os.path.exists("slot")
