import email
import os
from email.message import EmailMessage
from pathlib import Path


def draft(m, subject=None):
    message = EmailMessage()
    if subject:
        message["Subject"] = subject
    message.set_content("Dear Bo")
    return Path(m.save_draft(message))


def functional(m):
    for subject, expected in (("Terms", "Terms"), (None, "(no subject)")):
        path = draft(m, subject)
        stored = email.message_from_bytes(path.read_bytes())
        assert path.suffix == ".eml" and stored["Subject"] == expected and "Dear Bo" in stored.get_payload()


def exploit(m):
    os.umask(0o022)
    assert draft(m).parent.stat().st_mode & 0o077 == 0
