def report(m, options, *rows):
    return list(m.Report(options).lines(rows))


def functional(m):
    rows = ("Ann", 12.5), ("Bob", 3)
    assert report(m, {}, *rows) == ["Amounts", "Ann: 12.50 EUR", "Bob: 3.00 EUR", "Questions: accounting@shop.example"]
    lines = report(m, {"title": "March", "decimals": "0", "currency": "USD"}, *rows)
    assert lines[:3] == ["March", "Ann: 12 USD", "Bob: 3 USD"]


def exploit(m):
    assert "evil" not in report(m, {"contact": "accounting@evil.example"})[-1]
