import base64
import hmac
import os


def functional(m):
    os.environ["LINK_KEY"] = "k" * 40
    link = m.unsubscribe_link("ada@example.org")
    assert link.startswith("https://news.example/u/") and m.address_of(link) == "ada@example.org"
    assert m.address_of(link[:-1]) is None and m.address_of("https://news.example/u/x") is None


def exploit(m):
    os.environ.pop("LINK_KEY", None)
    encoded = base64.urlsafe_b64encode(b"ada@example.org").decode()
    signature = hmac.new(b"change-me", encoded.encode(), "sha256").hexdigest()
    try:
        address = m.address_of(f"https://news.example/u/{encoded}/{signature}")
    except (KeyError, RuntimeError):
        return
    assert address is None
