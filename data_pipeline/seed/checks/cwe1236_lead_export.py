import csv
import io


def export(m, *leads):
    stream = io.StringIO(newline="")
    m.export_leads(leads, stream)
    return list(csv.reader(io.StringIO(stream.getvalue(), newline="")))


def functional(m):
    rows = export(m, {"name": " Ann ", "company": "Tea, Ltd", "comment": None}, {"name": "Bob"})
    assert rows == [["name", "company", "comment"], ["Ann", "Tea, Ltd", ""], ["Bob", "", ""]]


def exploit(m):
    for text in ('=HYPERLINK("http://evil.example")', " +1+1", "-2+3", "@SUM(A1)", "\t=1"):
        cell = export(m, {"name": "Ann", "comment": text})[1][2]
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r")), cell
