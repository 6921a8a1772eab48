from pathlib import Path


def functional(m):
    Path("hosted/000042").mkdir(parents=True)
    Path("hosted/000042/about.txt").write_text("We bake bread.")
    assert m.hosted_file(42, "about.txt") == (200, "text/plain", b"We bake bread.")
    assert m.hosted_file(42, "absent.txt")[0] == 404


def exploit(m):
    Path("hosted/000042").mkdir(parents=True)
    Path("server.key").write_text("PRIVATE")
    Path("hosted/000042/about.txt").symlink_to(Path("server.key").absolute())
    assert b"PRIVATE" not in m.hosted_file(42, "about.txt")[2]
