import os
from pathlib import Path

PROGRAM = """#!/bin/sh
printf '%s\\n' "$0" "$@" > seen
case "$MYSQL_PWD $*" in *hunter2*) echo "-- dump of $4$5$3" ;; *) exit 1 ;; esac
"""


def dump(m):
    Path("bin").mkdir()
    Path("bin/mysqldump").write_text(PROGRAM)
    Path("bin/mysqldump").chmod(0o755)
    os.environ["PATH"] = f"{Path('bin').absolute()}:{os.environ['PATH']}"
    return m.dump_shop("db.example", "backup", "hunter2", "shop.sql")


def functional(m):
    size = dump(m)
    assert size == len(Path("shop.sql").read_bytes()) > 0
    assert "--host=db.example" in Path("seen").read_text()


def exploit(m):
    dump(m)
    assert "hunter2" not in Path("seen").read_text()
