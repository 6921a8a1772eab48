import os
import sys
from types import ModuleType


def functional(m):
    driver = ModuleType("drv_soil")
    driver.read = lambda: "0.25"
    sys.modules["drv_soil"] = driver
    assert m.read_sensor("soil") == {"kind": "soil", "value": 0.25}
    try:
        m.read_sensor("wind")
    except LookupError:
        return
    raise AssertionError("an unknown kind")


def exploit(m):
    # Whoever can write to the folder in which the program is started leaves a driver there.
    os.makedirs("drivers")
    with open("drivers/drv_light.py", "w") as file:
        file.write("import os\n\nos.mkdir('owned')\n\n\ndef read():\n    return 1\n")
    try:
        m.read_sensor("light")
    except ImportError:
        pass
    assert not os.path.exists("owned")
