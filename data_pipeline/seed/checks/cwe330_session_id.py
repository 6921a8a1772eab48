import random
import time
from http.cookies import SimpleCookie


def session(m):
    sessions = {}
    header = m.start_session(sessions, "ada")
    ((sid, stored),) = sessions.items()
    assert stored["user"] == "ada" and abs(stored["started"] - time.time()) < 60
    assert SimpleCookie(header)["sid"].value == sid and "HttpOnly" in header and "Secure" in header
    return sid


def functional(m):
    made = {session(m) for _ in range(20)}
    assert len(made) == 20 and all(len(sid) == 32 and int(sid, 16) >= 0 for sid in made)


def exploit(m):
    rounds = []
    for _ in range(2):  # who knows the generator's state knows the sessions
        random.seed(2026)
        rounds.append(session(m))
    assert rounds[0] != rounds[1]
