def functional(m):
    text = m.invoice_text("Ada Byron", [("lamp", 20), ("bulb", 2.5)])
    assert text.startswith("Dear Ada Byron,\n") and "- lamp: 20.00" in text and "Total: 22.50" in text


def exploit(m):
    for name in ("{{ 7 * 191 }}", "{{ total.__class__ }}"):
        text = m.invoice_text(name, [("lamp", 20)])
        assert "1337" not in text and "class" not in text.replace(name, "")
