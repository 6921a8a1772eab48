from pathlib import Path


def project(*names):
    for name in ("index.html", "img/cat.jpg", *names):
        path = Path("project", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def functional(m):
    project()
    assert m.publish("project", "www") == ["img/cat.jpg", "index.html"]
    assert Path("www/img/cat.jpg").read_text() == "img/cat.jpg"
    for source, target in (("project", "www"), ("project/img", "other")):
        try:
            m.publish(source, target)
        except (ValueError, FileExistsError):
            continue
        raise AssertionError(source)
    Path("project/link").symlink_to("/etc/hosts")
    try:
        m.publish("project", "other")
    except ValueError:
        return
    raise AssertionError("a link was published")


def exploit(m):
    project(".env", ".git/config", ".git/index.html", "img/.htpasswd", "shop.sql.gz", "settings.py")
    assert m.publish("project", "www") == ["img/cat.jpg", "index.html"]
    assert not Path("www/.env").exists()
