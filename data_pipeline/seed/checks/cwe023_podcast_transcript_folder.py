from pathlib import Path


def functional(m):
    Path("shows/history").mkdir(parents=True)
    Path("shows/history/007.txt").write_text("Welcome back.\n\nToday: canals.\n")
    assert m.transcript("history", "7") == ["Welcome back.", "Today: canals."]
    for show, episode in (("history", 8), ("music", 7)):
        try:
            m.transcript(show, episode)
        except LookupError:
            continue
        raise AssertionError(show)


def exploit(m):
    Path("shows").mkdir()
    Path("drafts").mkdir()
    Path("drafts/001.txt").write_text("unpublished")
    try:
        text = m.transcript("../drafts", 1)
    except LookupError:
        return
    assert "unpublished" not in text
