import json
import os
import zipfile


def mod(manifest):
    with zipfile.ZipFile("mod.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
    return "mod.zip"


def functional(m):
    assert m.read_manifest(mod({"name": "Trains", "version": 3})) == {"name": "Trains", "version": 3}


def exploit(m):
    path = mod({"name": "x" * 20_000_000})
    assert os.path.getsize(path) < m.LIMIT
    try:
        manifest = m.read_manifest(path)
    except ValueError:
        return
    assert len(manifest["name"]) <= m.LIMIT
