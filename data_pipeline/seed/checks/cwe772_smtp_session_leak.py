sessions = []


class SMTP:
    def __init__(self, host, port=25, timeout=None):
        assert host == "relay.example.com"
        self.messages = []
        self.open = True
        sessions.append(self)

    def send_message(self, message):
        self.messages.append(message)

    def quit(self):
        self.open = False

    close = quit

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.quit()


def functional(m):
    m.smtplib.SMTP = SMTP
    m.send_reminder("ada@example.org", "Two books are due.")
    (message,) = sessions[0].messages
    assert message["To"] == "ada@example.org" and message.get_content() == "Two books are due.\n"


def exploit(m):
    m.smtplib.SMTP = SMTP
    for _ in range(3):
        m.send_reminder("ada@example.org", "Two books are due.")
    assert len(sessions) == 3 and not any(session.open for session in sessions)
