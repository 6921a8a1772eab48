import io
import os

HEAD = "sensor,samples\n"


def functional(m):
    stream = io.StringIO(HEAD + 'roof,"[1, 2.5, 4]"\ncellar,[]\n')
    assert m.mean_samples(stream) == {"roof": 2.5}


def exploit(m):
    try:
        m.mean_samples(io.StringIO(HEAD + "roof,[__import__('os').mkdir('owned') or 1]\n"))
    except (ValueError, SyntaxError):
        pass
    assert not os.path.exists("owned")
