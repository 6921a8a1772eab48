import os
import zipfile


def functional(m):
    with zipfile.ZipFile(m.pack_payslips({7: "Ada 3000", "8": "Bo 2900"})) as archive:
        names = [name for name in archive.namelist() if name.endswith(".txt")]
        assert sorted(os.path.basename(name) for name in names) == ["7.txt", "8.txt"]
        assert {archive.read(name) for name in names} == {b"Ada 3000", b"Bo 2900"}


def exploit(m):
    os.umask(0o022)
    folder = os.path.dirname(m.pack_payslips({7: "Ada 3000"}))
    assert os.stat(folder).st_mode & 0o077 == 0
    assert folder != os.path.dirname(m.pack_payslips({7: "Ada 3000"}))
