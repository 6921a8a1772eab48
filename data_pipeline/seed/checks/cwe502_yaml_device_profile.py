import os
from pathlib import Path

import yaml


def functional(m):
    Path("profile.yaml").write_text("interval: 15\nsensors: [door, 7]\n")
    assert m.load_profile("profile.yaml") == (15, ["door", "7"])
    Path("profile.yaml").write_text("sensors: []\n")
    assert m.load_profile("profile.yaml") == (60, [])


def exploit(m):
    Path("profile.yaml").write_text("sensors: [!!python/object/apply:os.mkdir [owned]]\n")
    try:
        m.load_profile("profile.yaml")
    except yaml.YAMLError:
        pass
    assert not os.path.exists("owned")
