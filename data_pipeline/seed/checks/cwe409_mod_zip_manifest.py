import json
import zipfile


def mod(manifest):
    with zipfile.ZipFile("castle.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
    return "castle.zip"


def functional(m):
    assert m.read_manifest(mod({"name": "Castle", "levels": [1, 2]})) == {"name": "Castle", "levels": [1, 2]}


def exploit(m):
    try:
        m.read_manifest(mod({"name": "x" * 20_000_000}))
    except ValueError:
        return
    raise AssertionError("a small mod filled the memory")
