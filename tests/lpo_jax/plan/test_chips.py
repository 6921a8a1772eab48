"""The TPU compiler in a process of ours."""

import os
import signal
import subprocess
import sys

from tests.helpers.marks import needs_libtpu
from tests.helpers.paths import REPO

LOADS = "import time; from lpo_jax.plan.chips import topology_devices; topology_devices('v5e:2x2'); print('loaded', flush=True); time.sleep(600)"


@needs_libtpu
def test_a_process_that_has_loaded_it_is_ended_without_a_word():
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen([sys.executable, "-c", LOADS], cwd=REPO, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "loaded\n"
    process.terminate()
    assert process.communicate(timeout=60) == ("", "") and process.returncode == -signal.SIGTERM
