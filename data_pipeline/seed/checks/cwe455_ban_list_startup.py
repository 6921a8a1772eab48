from pathlib import Path


def functional(m):
    Path("banned").write_text("192.0.2.0/24\n\n2001:db8::/32\n")
    gate = m.Gate("banned")
    assert gate.admits("198.51.100.7") and gate.admits("::1")
    assert not gate.admits("192.0.2.9") and not gate.admits("2001:db8::5")


def exploit(m):
    Path("banned").write_text("192.0.2.0/24\n198.51.100.0/240\n")
    try:
        gate = m.Gate("banned")
    except (SystemExit, OSError, ValueError):
        return
    assert not gate.admits("192.0.2.9")
