from pathlib import Path


def site():
    Path("site/minutes").mkdir(parents=True)
    Path("site/index.txt").write_text("Welcome")
    Path("site/minutes/2025.txt").write_text("The treasurer is ill.")


def functional(m):
    site()
    assert m.read_page("site", "index.txt") == "Welcome"
    assert m.read_page("site", "/minutes/2025.txt", "Ada") == "The treasurer is ill."
    for path, error in (("/minutes/2025.txt", PermissionError), ("/absent.txt", LookupError), ("/minutes", LookupError)):
        try:
            m.read_page("site", path)
        except error:
            continue
        raise AssertionError(path)


def exploit(m):
    site()
    for path in ("/./minutes/2025.txt", "/minutes/./2025.txt", "./minutes//2025.txt", "//minutes/2025.txt"):
        try:
            m.read_page("site", path)
        except (LookupError, PermissionError):
            continue
        raise AssertionError(path)
