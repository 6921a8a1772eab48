def functional(m):
    text = m.invoice_text("Ann", [("Tea", 2.5), ("Mug", 10)])
    assert text.startswith("Dear Ann,\n")
    assert "- Tea: 2.50\n" in text and "- Mug: 10.00\n" in text and "Total: 12.50" in text


def exploit(m):
    text = m.invoice_text("{{ 6 * 7 }}{{ items.__class__.__name__ }}", [])
    assert "42" not in text and "list," not in text
