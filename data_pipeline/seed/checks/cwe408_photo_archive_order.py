import io
import zipfile


class Photos(dict):
    used = 0

    def get(self, *key):
        self.used += 1
        return super().get(*key)


PHOTOS = {"3b": {"ada.jpg": b"ada", "bo.jpg": b"bo"}}


def refused(m, photos, name, token):
    try:
        m.download_archive({"class": name, "token": token}, {"3b": "t0ken"}, photos)
    except PermissionError:
        return True
    return False


def functional(m):
    data = m.download_archive({"class": "3b", "token": "t0ken"}, {"3b": "t0ken"}, PHOTOS)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.namelist() == ["ada.jpg", "bo.jpg"] and archive.read("bo.jpg") == b"bo"
    assert refused(m, PHOTOS, "3b", "other") and refused(m, PHOTOS, "4a", "")


def exploit(m):
    photos = Photos(PHOTOS)
    for guess in range(20):
        assert refused(m, photos, "3b", str(guess))
    assert photos.used == 0
