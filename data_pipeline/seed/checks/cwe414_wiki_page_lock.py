def new_page():
    return {"text": "Opening hours\n", "locked_by": None, "history": []}


def functional(m):
    page = new_page()
    m.lock_page(page, "ada")
    try:
        m.lock_page(page, "bo")
    except RuntimeError:
        assert m.save_page(page, "ada", "Opening hours: 9 to 5  ") == 2
    assert page == {"text": "Opening hours: 9 to 5\n", "locked_by": None, "history": ["Opening hours\n"]}


def exploit(m):
    page = new_page()
    m.lock_page(page, "ada")
    try:
        m.save_page(page, "eve", "closed")
    except RuntimeError:
        pass
    assert page["locked_by"] == "ada" and page["text"] == "Opening hours\n"
