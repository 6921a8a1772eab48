def functional(m):
    messages = []
    sender = m.CodeSender(lambda *message: messages.append(message))
    assert sender.request("+1555", 1000) is True
    assert sender.request("+1666", 1001) is True
    assert sender.request("+1555", 2000) is True
    assert [number for number, _ in messages] == ["+1555", "+1666", "+1555"]
    code = sender.codes["+1555"]
    assert len(code) == 6 and code.isdigit() and code in messages[2][1]


def exploit(m):
    messages = []
    sender = m.CodeSender(lambda *message: messages.append(message))
    for second in range(59):
        sender.request("+1555", second)
    assert len(messages) <= 5
