import os

import yaml


def functional(m):
    text = "steps:\n- {name: lint, run: ruff check}\n- {run: pytest}\n"
    assert m.read_steps(text) == [("lint", "ruff check"), ("unnamed", "pytest")]
    assert m.read_steps("") == []


def exploit(m):
    try:
        m.read_steps("steps:\n- run: !!python/object/apply:os.mkdir [owned]\n")
    except yaml.YAMLError:
        pass
    assert not os.path.exists("owned")
