import os
from pathlib import Path


def functional(m):
    first, second = m.stage_invoice(b"%PDF-1"), m.stage_invoice(b"%PDF-2")
    assert first.endswith(".pdf") and Path(first).read_bytes() == b"%PDF-1" and Path(second).read_bytes() == b"%PDF-2"


def exploit(m):
    os.umask(0o022)
    assert os.stat(m.stage_invoice(b"%PDF-1")).st_mode & 0o077 == 0
