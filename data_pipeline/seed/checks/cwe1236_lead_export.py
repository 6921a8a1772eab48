import csv
import io


def rows(m, *leads):
    stream = io.StringIO(newline="")
    m.export_leads(leads, stream)
    return list(csv.reader(io.StringIO(stream.getvalue(), newline="")))


def functional(m):
    lead = {"name": " Ada ", "company": "Lamps, Inc.", "comment": None, "id": 7}
    assert rows(m, lead) == [["name", "company", "comment"], ["Ada", "Lamps, Inc.", ""]]


def exploit(m):
    formulas = ["=HYPERLINK(1)", "+1+cmd", "-1+cmd", "@SUM(1)", "\t=1+1", " =1+1"]
    for row in rows(m, *({"name": text, "company": "x", "comment": text} for text in formulas))[1:]:
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row)
