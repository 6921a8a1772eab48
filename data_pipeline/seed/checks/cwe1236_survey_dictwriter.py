import csv


def save(m, *texts):
    m.save_answers("answers.csv", [{"respondent": 7, "question": "Q1", "answer": text, "ip": "::1"} for text in texts])
    with open("answers.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def functional(m):
    assert save(m, 'I "like" it, mostly', "5") == [
        {"respondent": "7", "question": "Q1", "answer": 'I "like" it, mostly'},
        {"respondent": "7", "question": "Q1", "answer": "5"},
    ]


def exploit(m):
    for row in save(m, '=HYPERLINK("http://evil.example")', "+1+1", "-2+3", "@SUM(A1)", "\t=1"):
        assert not row["answer"].startswith(("=", "+", "-", "@", "\t", "\r")), row
