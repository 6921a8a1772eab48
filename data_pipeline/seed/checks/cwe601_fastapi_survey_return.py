from doubles import App, module

module("fastapi", FastAPI=App)
module("fastapi.responses", RedirectResponse=lambda url, status_code: (status_code, url))
finished = []
module("surveys.store", mark_finished=finished.append)


def functional(m):
    assert m.finish_survey(7) == (303, "/thanks") and m.finish_survey(8, "/surveys") == (303, "/surveys")
    assert finished == [7, 8]


def exploit(m):
    for page in ("https://evil.example/", "//evil.example/", "https://panel.fieldwork.example.evil.example/home"):
        assert "evil" not in m.finish_survey(7, page)[1]
