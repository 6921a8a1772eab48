import io
import xml.sax
from pathlib import Path


def functional(m):
    track = b"<gpx><name>Lake\n  walk</name><desc>easy &amp; short</desc></gpx>"
    assert m.track_text(io.BytesIO(track)) == "Lake walkeasy & short"


def exploit(m):
    Path("secret.txt").write_text("db password hunter2")
    place = Path("secret.txt").absolute().as_uri()
    track = f'<!DOCTYPE gpx [<!ENTITY e SYSTEM "{place}">]><gpx><name>&e;</name></gpx>'
    try:
        text = m.track_text(io.BytesIO(track.encode()))
    except xml.sax.SAXException:
        return
    assert "hunter2" not in text
