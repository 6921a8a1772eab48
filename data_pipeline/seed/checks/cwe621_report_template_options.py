def functional(m):
    rows = [("Ann", 12.5), ("Bob", 3)]
    assert m.make_report(rows, {}) == ["Amounts", "Ann: 12.50 EUR", "Bob: 3.00 EUR", "Questions: accounting@shop.example"]
    lines = m.make_report(rows, {"title": "March", "decimals": "0", "currency": "USD"})
    assert lines[:3] == ["March", "Ann: 12 USD", "Bob: 3 USD"]


def exploit(m):
    lines = m.make_report([], {"contact": "accounting@evil.example"})
    assert "evil" not in lines[-1]
