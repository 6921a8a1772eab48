import json
import os
import platform
import sys
from wsgiref.util import setup_testing_defaults


def ask(m, path):
    environ, seen = {"PATH_INFO": path}, []
    setup_testing_defaults(environ)
    body = b"".join(m.status_app(environ, lambda status, headers: seen.append(status)))
    return seen[0], body


def functional(m):
    status, body = ask(m, "/status")
    answer = json.loads(body)
    assert status.startswith("200") and answer["ok"] is True and answer["uptime_s"] >= 0
    assert ask(m, "/")[0].startswith("404")
    m.TABLE["date"] = "2020-01-01"
    assert json.loads(ask(m, "/status")[1])["ok"] is False


def exploit(m):
    body = ask(m, "/status")[1].decode()
    for detail in (platform.release(), sys.version.split()[0], os.getcwd()):
        assert detail not in body
