class Socket:
    def __init__(self):
        self.sent = b""

    def sendall(self, data):
        self.sent += data


def said(m, channel, text):
    sock = Socket()
    m.BuildBot(sock, "builder").say(channel, text)
    return sock.sent.decode()


def functional(m):
    assert said(m, "#dev", " build 42 passed ") == "PRIVMSG #dev :build 42 passed\r\n"
    assert len(said(m, "#dev", "x" * 900)) == len("PRIVMSG #dev :\r\n") + 400


def exploit(m):
    for channel, text in (("#dev", "fixed\r\nQUIT :bye"), ("#dev\nJOIN #staff\nPRIVMSG #staff", "hi")):
        sent = said(m, channel, text)
        assert sent.count("\n") == 1 and sent.count("\r") == 1
