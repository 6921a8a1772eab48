from pathlib import Path


def functional(m):
    Path("brochures/asia").mkdir(parents=True)
    Path("brochures/asia/two weeks.txt").write_text("Laos")
    assert m.brochure("/brochures/asia/two%20weeks.txt") == b"Laos"
    for path in ("/brochures/", "/other/a", "/brochures/../a", "/brochures/absent.txt"):
        try:
            m.brochure(path)
        except LookupError:
            continue
        raise AssertionError(path)


def exploit(m):
    Path("brochures").mkdir()
    Path("customers.txt").write_text("Ada")
    for path in (
        "%2e%2e/customers.txt",
        "%2E./customers.txt",
        ".%2e%2fcustomers.txt",
        str(Path("customers.txt").absolute()).replace("/", "%2f"),
    ):
        try:
            m.brochure("/brochures/" + path)
        except LookupError:
            continue
        raise AssertionError(path)
