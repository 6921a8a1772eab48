import builtins

handles = []


def totals(m, *texts):
    def opening(*args, **options):
        handles.append(builtins.open(*args, **options))  # noqa: SIM115 (whether it is closed is the question)
        return handles[-1]

    paths = []
    for number, text in enumerate(texts):
        paths.append(f"{number}.csv")
        with open(paths[-1], "w") as file:
            file.write(text)
    m.open = opening
    return m.column_totals(paths, "kwh")


def functional(m):
    assert totals(m, "day,kwh\n1,2.5\n2,4\n", "kwh\n1\n") == {"0.csv": 6.5, "1.csv": 1.0}


def exploit(m):
    totals(m, "kwh\n1\n", "kwh\n2\n")
    try:
        totals(m, "kwh\nmany\n")
    except ValueError:
        pass
    assert len(handles) == 3 and all(handle.closed for handle in handles)
