import os
import tempfile


def write(m):
    os.umask(0o022)
    os.makedirs("temporary")
    tempfile.tempdir = os.path.abspath("temporary")
    return m.temporary_copy(b"%PDF-1.7 income")


def functional(m):
    path = write(m)
    assert path.endswith(".pdf") and path.startswith(tempfile.tempdir)
    with open(path, "rb") as file:
        assert file.read() == b"%PDF-1.7 income"
    assert m.temporary_copy(b"%PDF-1.7 other") != path


def exploit(m):
    assert os.stat(write(m)).st_mode & 0o077 == 0
