import json
import os


def report(m):
    os.environ.update(LANG="nl_NL.UTF-8", CLOUD_SECRET_KEY="hunter2")
    try:
        [][1]
    except IndexError as error:
        return m.crash_report(error, "3.1")


def functional(m):
    request = report(m)
    data = json.loads(request.data)
    assert request.full_url.startswith("https://crash.") and request.get_method() == "POST"
    assert data["version"] == "3.1" and data["kind"] == "IndexError" and "in report" in data["trace"][0]
    assert data["environment"]["LANG"] == "nl_NL.UTF-8"


def exploit(m):
    assert b"hunter2" not in report(m).data
