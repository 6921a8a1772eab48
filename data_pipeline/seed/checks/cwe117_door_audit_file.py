from pathlib import Path


def functional(m):
    m.record_access("audit.log", "B-17", "lab 2", True)
    m.record_access("audit.log", "B-18", "lab 2", False)
    first, second = Path("audit.log").read_text().splitlines()
    assert "B-17" in first and "lab 2" in first and first.endswith(" GRANTED")
    assert "B-18" in second and second.endswith(" DENIED")


def exploit(m):
    badge = "x lab DENIED\n2026-01-01T08:00:00+00:00 B-01 vault GRANTED\n"
    m.record_access("audit.log", badge, "lab 2", False)
    assert len(Path("audit.log").read_text().splitlines()) == 1
