import json


def send(mixer, channel, level):
    return mixer.handle(json.dumps({"channel": channel, "level": level}))


def functional(m):
    mixer = m.Mixer()
    assert send(mixer, 3, 80) == {"channel": 3, "level": 80}
    assert "error" in send(mixer, 4, 0)
    assert "error" in send(mixer, 0, 101)
    assert mixer.levels == [50, 50, 50, 80, 100]


def exploit(m):
    mixer = m.Mixer()
    send(mixer, -1, 0)
    assert mixer.levels[-1] == 100
