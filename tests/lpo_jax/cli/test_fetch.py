"""`lpo fetch` as a command."""

import os
import subprocess
import sys

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
