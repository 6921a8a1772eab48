import sys
import types
from pathlib import Path


def functional(m):
    sys.modules["drv_light"] = types.SimpleNamespace(read=lambda: "812")
    assert m.read_sensor("light") == {"kind": "light", "value": 812.0}
    try:
        m.read_sensor("os")
    except LookupError:
        return
    raise AssertionError("unknown kind accepted")


def exploit(m):
    Path("drivers").mkdir()
    Path("drivers/drv_soil.py").write_text("def read():\n    open('owned', 'w').close()\n    return 1\n")
    try:
        m.read_sensor("soil")
    except ImportError:
        pass
    assert not Path("owned").exists()
