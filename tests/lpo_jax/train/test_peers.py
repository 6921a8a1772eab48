"""How the processes of a job meet."""

import json
import socket

import pytest

from tests.helpers.multihost import finish, start
from tests.helpers.paths import REPO


@pytest.mark.slow
def test_hosts_that_were_asked_for_different_things_say_which(tmp_path):
    for index, unlike in enumerate((["seed=1"], ["seed=2", f"run_dir={tmp_path}/other", "stages.lpo.optim.lr=1e-3"])):
        asked = ["lpo", "train", str(REPO / "configs/tiny_cpu.yaml"), f"run_dir={tmp_path}/run", *unlike]
        (tmp_path / f"{index}.json").write_text(json.dumps([asked]))
    for text in finish(start(2, "tests.helpers.multihost", "commands", tmp_path / "{}.json"), [2, 2]):
        (told,) = [line for line in text.splitlines() if line.startswith("lpo: error: the hosts were asked for different things")]
        lines = text.partition(told)[2].splitlines()[1:4]
        one = f"in process 1 on {socket.gethostname()}"
        assert sorted(lines) == [
            f'  run_dir: "{tmp_path}/other" {one}, "{tmp_path}/run" in process 0',
            f"  seed: 2 {one}, 1 in process 0",
            f"  stages.lpo.optim.lr: 0.001 {one}, 0.002 in process 0",
        ]
    assert not list(tmp_path.glob("*/"))  # nothing has begun


@pytest.mark.slow
def test_a_host_that_dies_before_all_have_met_is_named():
    first, _ = finish(start(2, "tests.helpers.multihost", "lost", "train", REPO / "configs/tiny_cpu.yaml"), [1, 9], timeout_s=60)
    assert "lpo: error: process 1 on a host that hasn't said its name is gone, it has said nothing for 5 s" in first
