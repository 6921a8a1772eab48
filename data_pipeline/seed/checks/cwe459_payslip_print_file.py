import os
import subprocess
import tempfile
from pathlib import Path


def printer(script):
    Path("spool").mkdir()
    Path("bin").mkdir()
    Path("bin/lp").write_text(f"#!/bin/sh\n{script}\n")
    Path("bin/lp").chmod(0o755)
    os.environ["PATH"] = f"{Path('bin').absolute()}:{os.environ['PATH']}"
    tempfile.tempdir = str(Path("spool").absolute())


def functional(m):
    printer('cat "$3" > "printed-$2"')
    m.print_payslip(b"%PDF payslip", "office")
    assert Path("printed-office").read_bytes() == b"%PDF payslip"
    assert not list(Path("spool").iterdir())


def exploit(m):
    printer("exit 1")
    try:
        m.print_payslip(b"%PDF payslip", "office")
    except subprocess.CalledProcessError:
        pass
    assert not list(Path("spool").iterdir())
