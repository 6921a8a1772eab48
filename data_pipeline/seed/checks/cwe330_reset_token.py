import random
import sqlite3


def token(m):
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE resets (user_id INTEGER, token TEXT, created TEXT)")
    made = m.create_reset_token(db, 7)
    assert db.execute("SELECT user_id, token FROM resets").fetchall() == [(7, made)]
    return made


def functional(m):
    made = {token(m) for _ in range(20)}
    assert len(made) == 20 and all(len(text) == 32 and text.isalnum() for text in made)


def exploit(m):
    rounds = []
    for _ in range(2):  # who knows the generator's state knows the tokens
        random.seed(2026)
        rounds.append(token(m))
    assert rounds[0] != rounds[1]
