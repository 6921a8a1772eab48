from doubles import within_two_seconds


def functional(m):
    assert m.decode_frames(["12 7  3;\n", "5 ;", "x;", "1 2"]) == [[12, 7, 3], [5]]


def exploit(m):
    assert within_two_seconds(m.decode_frames, ["1" * 60 + "!"]) == []
