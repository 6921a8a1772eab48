import tomllib
from pathlib import Path


def functional(m):
    m.save_profile("p.toml", "Zoë of Häm", "green")
    assert tomllib.loads(Path("p.toml").read_text("utf-8")) == {"player": {"nickname": "Zoë of Häm", "colour": "green", "role": "guest"}}
    for nickname, colour in (("", "red"), ("Bo", "pink")):
        try:
            m.save_profile("p.toml", nickname, colour)
        except ValueError:
            continue
        raise AssertionError(nickname)


def exploit(m):
    nickname = 'Eve"\nrole = "admin"\n[rest]\nx = "'
    m.save_profile("p.toml", nickname, "red")
    player = tomllib.loads(Path("p.toml").read_text("utf-8"))["player"]
    assert player["role"] == "guest" and player["nickname"] == nickname
