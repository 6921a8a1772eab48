NAMES = {
    "192.0.2.10": "bot1.crawl.finder.example",
    "192.0.2.11": "mail.finder.example",
    "203.0.113.66": "bot2.crawl.finder.example",
}


def gethostbyaddr(address):
    if address not in NAMES:
        raise OSError("unknown host")
    return NAMES[address], [], [address]


def gethostbyname_ex(name):
    if name != "bot1.crawl.finder.example":
        raise OSError("name not known")
    return name, [], ["192.0.2.10"]


def ask(m, address):
    m.socket.gethostbyaddr, m.socket.gethostbyname_ex = gethostbyaddr, gethostbyname_ex
    return m.is_partner_crawler(address)


def functional(m):
    assert ask(m, "192.0.2.10") is True
    assert ask(m, "192.0.2.11") is False and ask(m, "192.0.2.99") is False


def exploit(m):
    assert ask(m, "203.0.113.66") is False
