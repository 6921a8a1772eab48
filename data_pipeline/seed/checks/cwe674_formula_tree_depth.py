def functional(m):
    assert m.evaluate(["+", 1, ["*", 2, 3.5]]) == 8.0 and m.evaluate(["-", 1, 3]) == -2.0
    try:
        m.evaluate(["/", 1, 2])
    except ValueError:
        return
    raise AssertionError("an unknown operator")


def exploit(m):
    tree = 1
    for _ in range(50_000):
        tree = ["+", tree, 1]
    try:
        m.evaluate(tree)
    except ValueError:
        return
    except RecursionError as error:
        raise AssertionError("one formula stops the program") from error
