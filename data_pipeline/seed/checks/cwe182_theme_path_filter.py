import os


def functional(m):
    os.makedirs("themes/winter")
    with open("themes/winter/dark.css", "w") as file:
        file.write("body {}")
    assert m.theme_css("winter/dark.css") == "body {}"
    assert m.theme_css("/../winter/dark.css") == "body {}"


def exploit(m):
    os.makedirs("themes")
    with open("private.css", "w") as file:
        file.write("secret")
    for name in ("....//private.css", "..//" + os.path.abspath("private.css")):
        try:
            text = m.theme_css(name)
        except (OSError, ValueError):
            continue
        assert "secret" not in text
