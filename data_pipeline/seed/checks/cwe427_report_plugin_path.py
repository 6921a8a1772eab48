import os
import sys

# The program lies in one folder and is started in another.
sys.path.insert(0, os.path.abspath("."))
PROGRAM = os.path.abspath(".")
os.makedirs("plugins")
os.makedirs("reports/plugins")
os.chdir("reports")


def plugin(folder, text):
    with open(os.path.join(folder, "plugins", "totals.py"), "w") as file:
        file.write(f"def render(rows):\n    return {text!r}\n")


def functional(m):
    for folder in (PROGRAM, "."):
        plugin(folder, "3 rows")
    assert m.load_plugin("totals")([]) == "3 rows"
    try:
        m.load_plugin("../totals")
    except ValueError:
        return
    raise AssertionError("not the name of a plugin")


def exploit(m):
    plugin(PROGRAM, "3 rows")
    plugin(".", "code from the folder of the report")
    assert m.load_plugin("totals")([]) == "3 rows"
