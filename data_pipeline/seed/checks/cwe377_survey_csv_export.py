import csv
import os

ROWS = [{"respondent": "7", "question": "diet", "answer": "none, really"}, {"respondent": "8", "question": "diet", "answer": "vegan"}]


def functional(m):
    path = m.export_answers(ROWS)
    with open(path, newline="") as file:
        assert list(csv.DictReader(file)) == ROWS
    assert path.endswith(".csv") and path != m.export_answers(ROWS)


def exploit(m):
    os.umask(0o022)
    assert os.stat(m.export_answers(ROWS)).st_mode & 0o077 == 0
