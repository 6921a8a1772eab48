import json
import os
import subprocess
from pathlib import Path


def functional(m):
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout=json.dumps({"smart_status": {"passed": True}}), stderr="")

    subprocess.run = run
    assert m.disk_healthy("sda") is True
    assert commands[0][0].endswith("smartctl") and commands[0][-1] == "/dev/sda"
    try:
        m.disk_healthy("../sda")
    except ValueError:
        return
    raise AssertionError("bad name accepted")


def exploit(m):
    Path("bin").mkdir()
    Path("bin/smartctl").write_text("""#!/bin/sh
echo owned > owned
echo '{"smart_status": {"passed": true}}'
""")
    Path("bin/smartctl").chmod(0o755)
    os.environ["PATH"] = f"{Path('bin').absolute()}:{os.environ.get('PATH', '/usr/bin')}"
    try:
        m.disk_healthy("sda")
    except (OSError, ValueError, KeyError):
        pass
    assert not Path("owned").exists()
