import csv
import io

from doubles import flask

flask(None, Response=lambda text, mimetype: (mimetype, text))


def rows(m, *remarks):
    m.SIGNUPS[7] = [{"nickname": "ada", "team": "red", "remark": remark} for remark in remarks]
    kind, text = m.download(7)
    assert kind == "text/csv"
    return list(csv.reader(io.StringIO(text, newline="")))


def functional(m):
    assert rows(m, "veggie, no nuts") == [["nickname", "team", "remark"], ["ada", "red", "veggie, no nuts"]]


def exploit(m):
    for row in rows(m, "=HYPERLINK(1)", "+1+cmd", "-1+cmd", "@SUM(1)", "\t=1+1")[1:]:
        assert not row[2].startswith(("=", "+", "-", "@", "\t", "\r"))
