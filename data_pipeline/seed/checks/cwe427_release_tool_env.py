import os
from types import SimpleNamespace

environments = []


def notes(m):
    def run(command, env, **options):
        environments.append(env)
        return SimpleNamespace(stdout="Fix the lamp\n\nAdd a switch\n")

    m.subprocess.run = run
    return m.release_notes("checkout", "2026-01-01")


def functional(m):
    assert notes(m) == ["Fix the lamp", "Add a switch"]
    assert "/usr/bin" in environments[0]["PATH"].split(":")


def exploit(m):
    os.environ["PATH"] = "/usr/bin:/bin"
    notes(m)
    assert all(os.path.isabs(folder) for folder in environments[0]["PATH"].split(":"))
