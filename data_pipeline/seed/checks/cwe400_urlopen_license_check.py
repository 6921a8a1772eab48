import io

limits = []


def ask(m, name, answer):
    def urlopen(url, timeout=None):
        limits.append(timeout)
        assert url == "https://pkgs.example.com/a%2Fb/json"
        return io.BytesIO(answer)

    m.urlopen = urlopen
    return m.package_license(name)


def functional(m):
    assert ask(m, "a/b", b'{"info": {"license": "MIT"}}') == "MIT"
    assert ask(m, "a/b", b'{"info": {"license": null}}') == "unknown"


def exploit(m):
    ask(m, "a/b", b'{"info": {}}')
    assert limits[0] is not None and limits[0] < 600
