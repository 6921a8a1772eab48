import configparser
import os


def functional(m):
    for password in ("old", "50%=x"):
        m.write_db_config("db.ini", "db.example", "shop", password)
    config = configparser.ConfigParser(interpolation=None)
    assert config.read("db.ini") == ["db.ini"]
    assert dict(config["database"]) == {"host": "db.example", "user": "shop", "password": "50%=x"}
    assert os.listdir(".").count("db.ini") == 1


def exploit(m):
    m.write_db_config("db.ini", "db.example", "shop", "hunter2")
    assert os.stat("db.ini").st_mode & 0o077 == 0
