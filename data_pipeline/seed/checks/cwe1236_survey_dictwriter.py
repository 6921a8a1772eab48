import csv


def rows(m, *answers):
    m.save_answers("answers.csv", answers)
    with open("answers.csv", newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def functional(m):
    answer = {"respondent": 7, "question": "colour", "answer": "red, or 2 = two", "ip": "192.0.2.7"}
    assert rows(m, answer) == [["respondent", "question", "answer"], ["7", "colour", "red, or 2 = two"]]


def exploit(m):
    formulas = ["=HYPERLINK(1)", "+1+cmd", "-1+cmd", "@SUM(1)", "\t=1+1"]
    for row in rows(m, *({"respondent": 1, "question": "q", "answer": text} for text in formulas))[1:]:
        assert not row[2].startswith(("=", "+", "-", "@", "\t", "\r"))
