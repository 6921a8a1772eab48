import os


def backup(m):
    os.makedirs("backups")
    with open("records.db", "wb") as file:
        file.write(b"patients")
    return m.backup_records("records.db", "backups")


def functional(m):
    copy = backup(m)
    assert os.path.basename(copy) == "records.db" and copy.startswith("backups")
    with open(copy, "rb") as file:
        assert file.read() == b"patients"


def exploit(m):
    assert os.stat(os.path.dirname(backup(m))).st_mode & 0o077 == 0
