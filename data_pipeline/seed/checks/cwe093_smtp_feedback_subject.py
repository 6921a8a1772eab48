import email
import smtplib

sent = []


class Server:
    def __init__(self, host, port, timeout=None):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def sendmail(self, sender, receivers, message):
        sent.append((sender, receivers, email.message_from_bytes(message)))


smtplib.SMTP = Server


def functional(m):
    m.send_feedback(" Nice site ", "Thank you,\r\nAda")
    ((sender, receivers, message),) = sent
    assert receivers == [m.SUPPORT] and message["From"] == sender == m.SENDER
    assert message["Subject"] == "Nice site" and message.get_payload() == "Thank you,\r\nAda"


def exploit(m):
    m.send_feedback("Hello\r\nBcc: many@example.net\r\nReply-To: eve@example.net", "Hi")
    message = sent[0][2]
    assert message["Bcc"] is None and message["Reply-To"] is None
