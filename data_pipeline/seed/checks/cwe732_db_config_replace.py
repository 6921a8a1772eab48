import configparser
import os


def functional(m):
    for password in ("p%1", "p2"):
        m.write_db_config("db.ini", "db.example", "shop", password)
        config = configparser.ConfigParser(interpolation=None)
        config.read("db.ini")
        assert dict(config["database"]) == {"host": "db.example", "user": "shop", "password": password}
    assert [name for name in os.listdir() if name.startswith("tmp")] == []


def exploit(m):
    os.umask(0o022)
    m.write_db_config("db.ini", "db.example", "shop", "p1")
    assert os.stat("db.ini").st_mode & 0o077 == 0
