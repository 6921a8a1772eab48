def functional(m):
    assert m.feed_url() == "https://stats.example/feed?rows=20"
    m.adjust("refresh_s=10&Rows=50&colour=7")
    assert m.REFRESH_S == 10 and m.feed_url() == "https://stats.example/feed?rows=50"
    try:
        m.adjust("rows=0")
    except ValueError:
        return
    raise AssertionError("no rows")


def exploit(m):
    m.adjust("api_host=1000&rows=5")
    assert m.feed_url() == "https://stats.example/feed?rows=5"
