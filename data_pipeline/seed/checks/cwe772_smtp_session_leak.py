import smtplib


class Relay:
    sessions, fail = [], False

    def __init__(self, host, port, timeout):
        self.place, self.open, self.sent = (host, port, timeout), True, []
        self.sessions.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.open = False

    quit = close = __exit__

    def send_message(self, message):
        if self.fail:
            raise smtplib.SMTPServerDisconnected("gone")
        self.sent.append(message)


def functional(m):
    smtplib.SMTP = Relay
    m.send_reminder("ann@example.org", "Please bring them back.")
    (session,) = Relay.sessions
    assert session.place == ("relay.example.com", 25, 10)
    assert session.sent[0]["To"] == "ann@example.org" and "bring them back" in session.sent[0].get_content()


def exploit(m):
    smtplib.SMTP = Relay
    for Relay.fail in (False, True):
        try:
            m.send_reminder("ann@example.org", "Please bring them back.")
        except smtplib.SMTPException:
            pass
    assert len(Relay.sessions) == 2 and not any(session.open for session in Relay.sessions)
