"""`lpo fetch` as a command."""

import os
import subprocess
import sys

import pytest

from lpo_jax import cli
from tests.helpers.paths import REPO
from tests.helpers.web_store import HUB_ID, Web, served


def test_it_says_what_it_has_done_and_its_libraries_say_nothing(tmp_path):
    web, place = Web(), tmp_path / "kept"
    web.hub = {"config.json": b"{}", "model.safetensors": bytes(range(256))}
    with served(web) as url:
        env = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        for said in ("fetched into", "is already in"):
            done = subprocess.run(
                [sys.executable, "-m", "lpo_jax.cli", "fetch", HUB_ID, str(place)], env=env, cwd=REPO, capture_output=True, text=True
            )
            assert done.returncode == 0 and done.stdout == f"{said} {place}\n", done
            assert all(line.startswith("fetch") for line in done.stderr.replace("\r", "\n").split("\n") if line), done.stderr
    assert (place / "model.safetensors").read_bytes() == bytes(range(256))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("gs://bkt", "gs://bkt: models are kept in a folder of a bucket"),
        ("gs://bkt/", "gs://bkt/: models are kept in a folder of a bucket"),
        ("gs://", "gs://: models are kept in a folder of a bucket"),
        ("gs:/bkt/m", "gs:/bkt/m: models are kept in a folder of a bucket"),
        ("s3://bkt/m", "s3://bkt/m: models are kept in a folder of a bucket"),
        ("file", "file is a file"),
        ("file/m", "file/m can't be made: "),
        ("gs://bkt/m", "gs://bkt/m: this machine has no credentials for Google Cloud: gcloud auth application-default login, or set "),
    ],
)
def test_a_place_that_can_hold_no_model_is_refused_before_anybody_is_asked(place, said, tmp_path, monkeypatch, capsys):
    def nobody(*_, **__):
        raise OSError("asked over the network")

    monkeypatch.setattr("socket.getaddrinfo", nobody)
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_AUTH_TOKEN_FOR_TESTING", "GCE_METADATA_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert cli.main(["fetch", HUB_ID, place]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
