import os
from pathlib import Path


def backup(m):
    Path("records.db").write_bytes(b"SQLite data")
    Path("backups").mkdir()
    return Path(m.backup_records("records.db", "backups"))


def functional(m):
    copy = backup(m)
    assert copy.read_bytes() == b"SQLite data" and copy.name == "records.db"
    assert copy.parent.parent == Path("backups")


def exploit(m):
    os.umask(0o022)
    assert backup(m).parent.stat().st_mode & 0o077 == 0
