from types import SimpleNamespace

from doubles import module

module("requests")
limits = []


def ask(m):
    def get(url, params, headers, timeout=None):
        limits.append(timeout)
        assert params["station"] == "oslo"
        return SimpleNamespace(json=lambda: {"temperature": "-3.5"}, raise_for_status=lambda: None)

    m.requests.get = get
    return m.current_temperature("oslo")


def functional(m):
    assert ask(m) == -3.5


def exploit(m):
    ask(m)
    assert limits[0] is not None
