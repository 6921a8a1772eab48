def functional(m):
    assert m.decode_frames([" 1 22 333;\n", "4;", "5 6", "x 1;", ";"]) == [[1, 22, 333], [4]]


def exploit(m):
    assert m.decode_frames(["1" * 60 + "x"]) == []
