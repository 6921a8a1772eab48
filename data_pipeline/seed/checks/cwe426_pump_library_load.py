import os
from types import SimpleNamespace

loaded = []


def speed(m, channel):
    def library(path):
        loaded.append(path)

        def pump_get_speed(number):
            return number * 1.5

        return SimpleNamespace(pump_get_speed=pump_get_speed)

    m.ctypes.CDLL = library
    return m.pump_speed(channel)


def functional(m):
    assert speed(m, 2) == 3.0 and os.path.basename(loaded[0]) == "libpump.so"
    try:
        speed(m, 8)
    except ValueError:
        return
    raise AssertionError("no such channel")


def exploit(m):
    speed(m, 1)
    assert os.path.isabs(loaded[0])
