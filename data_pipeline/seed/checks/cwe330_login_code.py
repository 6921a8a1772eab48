import random
import re
import time


class Connection:
    def send_message(self, message):
        self.message = message


def code(m, address="ada@example.org"):
    connection, pending = Connection(), {}
    m.send_login_code(connection, address, pending)
    sent = re.search("[0-9]{6}", connection.message.get_content())[0]
    stored, expires = pending[address]
    assert sent == stored and connection.message["To"] == address
    assert 500 < expires - time.time() <= 600
    return sent


def functional(m):
    assert len({code(m) for _ in range(20)}) > 15


def exploit(m):
    rounds = []
    for _ in range(2):  # who knows the generator's state knows the codes
        random.seed(2026)
        rounds.append([code(m) for _ in range(4)])
    assert rounds[0] != rounds[1]
