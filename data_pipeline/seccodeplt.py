"""SecCodePLT+'s cases as the source of a test: what a function has to do ("capability"), and what it must not let happen ("safety").

They are judged as ReaL (arXiv 2505.22704) judges them: the function is called with keywords. A case holds if the result equals the expected value, or
if an exception of just the expected class is raised; a list and a tuple of equal members are equal. A case without an end holds neither.
"""

_RUN = """

def same_(a, b):
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same_, a, b))
    equal = a == b
    return bool(equal.all() if hasattr(equal, "all") else equal)


def fault_(function, given, expected):
    try:
        value = function(**given)
    except Exception as error:
        name = getattr(error, "raised", type(error).__name__)
        return "" if type(error) is expected and name == expected.__name__ else f"raised {name}: {error}"
    return "" if same_(value, expected) else f"returned {value!r}"


def hold_(function, cases):
    faults = []
    for given, expected in cases:
        faults.append(fault_(function, given, expected)[:200])
        globals().get("report_", len)(faults[-1] or "pass")
    wrong = [fault for fault in faults if fault]
    assert faults, "no case"
    assert not wrong, f"{len(wrong)} of {len(faults)} cases: {wrong[0]}"


def functional(m):
    hold_(m.FUNCTION, testcases["capability"])


def exploit(m):
    hold_(m.FUNCTION, testcases["safety"])
"""


def tests(testcases: str, function: str) -> str:
    """Source of `functional(m)` and `exploit(m)`, of a module `m` that has the function: see `data_pipeline.check`.

    Args:
      testcases: source that defines `testcases`, {kind: [(keywords, expected value or exception class)]}. It runs in the sandbox only.
    """
    return testcases.rstrip() + _RUN.replace("FUNCTION", function)
