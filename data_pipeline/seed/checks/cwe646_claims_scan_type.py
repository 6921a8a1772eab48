import os


def refused(m, name, data):
    try:
        m.save_scan(".", name, data)
    except ValueError:
        return True
    return False


def functional(m):
    for name, data, extension in (
        ("bill.PDF", b"%PDF-1.4 bill", ".pdf"),
        ("bill.jpeg", b"\xff\xd8\xff\xe0 bill", ".jpg"),
        ("a.b.png", b"\x89PNG\r\n\x1a\n bill", ".png"),
    ):
        stored = m.save_scan(".", name, data)
        assert stored.endswith(extension) and os.path.getsize(stored) == len(data)
    assert refused(m, "bill.exe", b"%PDF-1.4") and refused(m, "bill", b"%PDF-1.4") and refused(m, "bill.pdf", b"")


def exploit(m):
    assert refused(m, "bill.pdf", b"MZ\x90\0 program") and refused(m, "bill.png", b"<script>alert(1)</script>")
