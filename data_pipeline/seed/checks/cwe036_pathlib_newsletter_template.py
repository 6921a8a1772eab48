from pathlib import Path


def functional(m):
    folder = Path("templates", "monthly")
    folder.mkdir(parents=True)
    (folder / "news.txt").write_text("Dear reader\n\n\n")
    assert m.load_template("monthly/news.txt") == "Dear reader\n"
    for name in ("absent.txt", "../secret.txt"):
        try:
            m.load_template(name)
        except LookupError:
            continue
        raise AssertionError(name)


def exploit(m):
    Path("templates").mkdir()
    secret = Path("secret.txt").absolute()
    secret.write_text("key")
    try:
        text = m.load_template(str(secret))
    except LookupError:
        return
    assert "key" not in text
