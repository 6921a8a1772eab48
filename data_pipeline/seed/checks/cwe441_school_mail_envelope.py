def functional(m):
    envelope = m.Envelope("ann")
    assert envelope.rcpt_to("<bob@school.example>").startswith("503")
    envelope.mail_from("<ann@school.example>")
    assert envelope.rcpt_to("<bob@School.example>").startswith("250")
    assert envelope.rcpt_to("<cleo@elsewhere.example>").startswith("250")
    assert envelope.recipients == ["<bob@School.example>", "<cleo@elsewhere.example>"]
    stranger = m.Envelope()
    stranger.mail_from("<dan@elsewhere.example>")
    assert stranger.rcpt_to("<bob@school.example>").startswith("250")
    assert stranger.rcpt_to("<eve@third.example>").startswith("550")


def exploit(m):
    envelope = m.Envelope()
    envelope.mail_from("<head@school.example>")
    assert not envelope.rcpt_to("<victim@elsewhere.example>").startswith("250")
    assert envelope.recipients == []
