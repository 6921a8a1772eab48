import json
from pathlib import Path

original = Path.open


def functional(m):
    path = m.publish_result(".", "12", (1.5, 2))
    assert json.loads(path.read_text()) == {"sample": 12, "values": [1.5, 2]}
    try:
        m.publish_result(".", 12, [3])
    except FileExistsError:
        return
    raise AssertionError("published twice")


def exploit(m):
    def late_open(path, *args, **kwargs):
        with original(path, "w") as file:  # another instrument was faster by a moment
            file.write("first")
        return original(path, *args, **kwargs)

    Path.open = late_open
    try:
        m.publish_result(".", 12, [3])
    except FileExistsError:
        pass
    with open("sample-12.json") as file:
        assert file.read() == "first"
