import hashlib


def refused(m, text):
    try:
        m.read_bundle(text)
    except ValueError:
        return True
    return False


def functional(m):
    body = "replace 3 lines\nend\n"
    digest = hashlib.sha256(body.encode()).hexdigest()
    assert m.read_bundle(f"sha256: {digest.upper()}\n{body}") == body
    assert refused(m, f"sha256: {'0' * 64}\n{body}") and refused(m, body) and refused(m, "")


def exploit(m):
    for digest in ("", *"0123456789abcdef"):
        assert refused(m, f"sha256: {digest}\nrun anything\n")
