import csv
import random
import re


def codes(m, path):
    m.make_vouchers(path, 20, 25)
    with open(path, newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["code", "value"] and {value for _, value in rows} == {"25"}
    return [code for code, _ in rows]


def functional(m):
    made = codes(m, "vouchers.csv")
    assert len(set(made)) == 20 and all(re.fullmatch("[A-Z2-9]{4}(-[A-Z2-9]{4}){2}", code) for code in made)


def exploit(m):
    rounds = []
    for _ in range(2):  # who knows the generator's state knows the codes
        random.seed(2026)
        rounds.append(codes(m, "vouchers.csv"))
    assert rounds[0] != rounds[1]
