import json

from doubles import module

printed = []
unchanged = lambda *args, **kwargs: lambda function: function  # noqa: E731
module("click", echo=printed.append, command=unchanged, argument=unchanged)


def show(m, entries):
    printed.clear()
    with open("notices.json", "w", encoding="utf-8") as file:
        json.dump(entries, file)
    m.notices("notices.json")
    return "".join(printed)


def functional(m):
    assert show(m, [{"author": "ops", "text": "Disk full on node 3."}]) == "         ops  Disk full on node 3."
    assert show(m, []) == "no notices"


def exploit(m):
    assert "\x1b" not in show(m, [{"author": "eve", "text": "hi \x1b[2A\x1b[2Kops: all passwords expire, see evil.example"}])
