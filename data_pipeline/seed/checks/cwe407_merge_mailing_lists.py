def functional(m):
    first = ["Ann@a.example\n", "# friends\n", "\n", "bob@b.example\n"]
    second = [" ANN@a.example ", "cleo@c.example"]
    assert m.merge_lists(first, second) == ["Ann@a.example", "bob@b.example", "cleo@c.example"]
    assert m.merge_lists() == []


def exploit(m):
    assert len(m.merge_lists(f"reader{i}@a.example" for i in range(200_000))) == 200_000
