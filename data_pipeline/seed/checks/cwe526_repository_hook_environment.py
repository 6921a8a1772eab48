import os
import subprocess

real = subprocess.run


def run_as_ourselves(command, *, user, group, extra_groups, **options):
    assert user == group == "hooks" and not extra_groups
    return real(command, **options)


def run(m, text):
    m.subprocess.run = run_as_ourselves
    os.environ["DATABASE_PASSWORD"] = "hunter2"
    with open("hook.sh", "w") as file:
        file.write(text)
    return m.run_hook("hook.sh", "tools/lamp", "main")


def functional(m):
    assert run(m, 'echo "$REPOSITORY $BRANCH"') == (0, "tools/lamp main\n")
    code, output = run(m, "echo before\nfalse\necho after")
    assert code == 1 and output == "before\n"


def exploit(m):
    _, output = run(m, "echo start\nset")
    assert "start" in output and "hunter2" not in output
