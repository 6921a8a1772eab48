import gzip
from pathlib import Path


def functional(m):
    Path("reports").mkdir()
    Path("reports/monday.txt").write_text("all quiet")
    packed = m.compress_report("reports", "monday.txt")
    assert packed == Path("reports/monday.txt.gz") and gzip.decompress(packed.read_bytes()) == b"all quiet"
    assert Path("reports/monday.txt").exists() and m.compress_report("reports", "absent.txt") is None


def exploit(m):
    Path("reports").mkdir()
    Path("reports/x; mkdir owned").write_text("all quiet")
    m.compress_report("reports", "x; mkdir owned")
    assert not Path("owned").exists()
