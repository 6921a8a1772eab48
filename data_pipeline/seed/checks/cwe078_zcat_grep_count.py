import gzip
from pathlib import Path


def functional(m):
    Path("game.log.gz").write_bytes(gzip.compress(b"a.b won\nab won\na.b lost\n"))
    assert m.count_hits("game.log.gz", "a.b") == 2
    assert m.count_hits("game.log.gz", "draw") == 0


def exploit(m):
    Path("game.log.gz").write_bytes(gzip.compress(b"a won\n"))
    for archive, term in (("game.log.gz", "'; mkdir owned; '"), ("'; mkdir owned; '", "won")):
        try:
            m.count_hits(archive, term)
        except ValueError:
            pass
        assert not Path("owned").exists()
