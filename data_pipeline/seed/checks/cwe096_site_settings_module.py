import os
import runpy


def functional(m):
    m.save_settings("site_settings.py", "Ann's bakery", "light", "20")
    settings = runpy.run_path("site_settings.py")
    assert (settings["TITLE"], settings["THEME"], settings["PER_PAGE"]) == ("Ann's bakery", "light", 20)


def exploit(m):
    title = 'Blog"\nimport os\nos.mkdir("owned")\nX = "'
    m.save_settings("site_settings.py", title, "light", "20")
    settings = runpy.run_path("site_settings.py")
    assert not os.path.exists("owned")
    assert settings["TITLE"] == title
