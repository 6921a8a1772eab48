import io
import os


def functional(m):
    assert m.track_text(io.BytesIO("<trk><name>Höhe</name>\n <cmt>a &amp; b</cmt></trk>".encode())) == "Höhe a & b"


def exploit(m):
    with open("secret.txt", "w") as file:
        file.write("hunter2")
    path = os.path.abspath("secret.txt")
    text = f'<!DOCTYPE trk [<!ENTITY x SYSTEM "file://{path}">]><trk><name>Lake &x;</name></trk>'
    assert "hunter2" not in m.track_text(io.BytesIO(text.encode()))
