PAGES = {"/map": "floor plan", "/staff/rota": "who works when", "/opening hours": "10 to 5"}


def functional(m):
    assert m.find_page(PAGES, "/map?floor=2", False) == "floor plan"
    assert m.find_page(PAGES, "/./opening%20hours", False) == "10 to 5"
    assert m.find_page(PAGES, "/staff/rota", True) == "who works when"
    for path, error in (("/staff/rota", PermissionError), ("/nowhere", LookupError)):
        try:
            m.find_page(PAGES, path, False)
        except error:
            continue
        raise AssertionError(path)


def exploit(m):
    for path in ("/%73taff/rota", "/map/../staff/rota", "/staff%2Frota", "/./staff/rota", "/map/%2e%2e/staff/rota"):
        try:
            page = m.find_page(PAGES, path, False)
        except (PermissionError, LookupError):
            continue
        assert page != "who works when", path
