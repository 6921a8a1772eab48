import json
import os
from types import SimpleNamespace

started = []


def healthy(m, device, passed):
    def run(command, **options):
        started.append(command)
        return SimpleNamespace(stdout=json.dumps({"smart_status": {"passed": passed}}))

    m.subprocess.run = run
    return m.disk_healthy(device)


def functional(m):
    assert healthy(m, "sda", True) is True and healthy(m, "nvme0n1", False) is False
    assert started[0][1:] == ["--json", "--health", "/dev/sda"] and os.path.basename(started[0][0]) == "smartctl"
    try:
        healthy(m, "../sda", True)
    except ValueError:
        return
    raise AssertionError("not the name of a disk")


def exploit(m):
    healthy(m, "sda", True)
    assert os.path.isabs(started[0][0])
