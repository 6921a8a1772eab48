from urllib.parse import parse_qs, urlsplit


def core(sent):
    def send(path):
        fields = parse_qs(urlsplit(path).query)
        sent.append((fields["to"][-1], fields["amount"][-1]))
        return "done"

    return send


def functional(m):
    sent = []
    assert m.forward_transfer("to=DE12&amount=499.50", core(sent)) == "done"
    for query in ("to=DE12&amount=500.01", "to=DE12&amount=-1", "to=DE12", "to=DE12&amount=NaN", "to=&amount=5"):
        try:
            m.forward_transfer(query, core(sent))
        except ValueError:
            continue
        raise AssertionError(query)
    assert sent == [("DE12", "499.50")]


def exploit(m):
    sent = []
    try:
        m.forward_transfer("to=DE12&amount=5&amount=90000", core(sent))
    except ValueError:
        pass
    assert sent == []
