import os

import yaml


def load(m, text):
    with open("profile.yaml", "w") as file:
        file.write(text)
    return m.load_profile("profile.yaml")


def functional(m):
    assert load(m, "interval: '30'\nsensors: [co2, 7]\n") == (30, ["co2", "7"])
    assert load(m, "name: hall\n") == (60, [])


def exploit(m):
    try:
        load(m, "sensors:\n- !!python/object/apply:os.mkdir [owned]\n")
    except yaml.YAMLError:
        pass
    assert not os.path.exists("owned")
