def functional(m):
    assert m.evaluate(["+", 1, ["*", 2.5, ["-", 7, 3]]]) == 11.0
    assert m.evaluate(4) == 4.0
    try:
        m.evaluate(["/", 1, 2])
    except ValueError:
        return
    raise AssertionError("unknown operator accepted")


def exploit(m):
    node = 1
    for _ in range(20_000):
        node = ["+", node, 1]
    try:
        m.evaluate(node)
    except RecursionError:
        raise AssertionError("a deep formula exhausts the stack") from None
    except ValueError:
        pass
