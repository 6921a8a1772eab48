import builtins
from pathlib import Path


def functional(m):
    Path("a.csv").write_text("item,price\ntea,1.5\nmug,4\n")
    Path("b.csv").write_text("price\n2\n")
    assert m.column_totals(["a.csv", "b.csv"], "price") == {"a.csv": 5.5, "b.csv": 2.0}
    try:
        m.column_totals(["a.csv"], "weight")
    except KeyError:
        return
    raise AssertionError("missing column accepted")


def exploit(m):
    Path("a.csv").write_text("item,price\ntea,1.5\n")
    handles, real = [], open

    def remember(*arguments, **options):
        handles.append(real(*arguments, **options))
        return handles[-1]

    builtins.open = remember
    try:
        m.column_totals(["a.csv"], "price")
        m.column_totals(["a.csv"], "weight")
    except KeyError:
        pass
    assert len(handles) == 2 and all(handle.closed for handle in handles)
