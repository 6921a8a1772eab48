"""`make train-tpu` when things go wrong: no capacity, preemption, crashes, lost connections. Ctrl-C and all else that needs a cloud that keeps state: test_tpu_cloud.py."""

import pytest

from tests.helpers.launch import ELSEWHERE, NOT_FOUND, STEPS, node, queued, told, up


def found(cloud, *answers):
    """What `tpu-vm describe` says, one after another: output, exit code and how often (-1: for ever)."""
    cloud.answers = [a for a in cloud.answers if a["pattern"] != "tpu-vm describe"]
    for out, code, times in answers:
        cloud.answer("tpu-vm describe", out, code, times)


def taken_while_followed(cloud, looks):
    """No TPU at first, then one that is READY, found PREEMPTED so many `looks` long (-1: for ever), then a new one."""
    found(cloud, (NOT_FOUND, 1, 1), (node(), 0, 1), (node("PREEMPTED"), 0, looks), (node(), 0, -1))


def test_spot_waits_in_the_queue(cloud):
    cloud.answer("resources describe", NOT_FOUND, code=1, times=2, first=True)  # when looking for what is there, and before asking
    for state in ("ACTIVE", "PROVISIONING", "WAITING_FOR_RESOURCES"):
        cloud.answers.insert(1, {"pattern": "resources describe", "out": queued(state), "code": 0, "times": 1})
    done = up(cloud, "--spot")
    assert done.returncode == 0, done.stderr
    (create,) = cloud.lines("create ")
    assert "queued-resources create lpo-eve-tiny-cpu-5d8060" in create
    assert {"--spot", "--node-id=lpo-eve-tiny-cpu-5d8060", "--runtime-version=v2-alpha-tpuv5-lite", "--valid-until-duration=360m"} <= set(
        create.split()
    )
    shown = [line.split()[2] for line in done.stdout.splitlines() if line.endswith(" min")]
    assert shown == ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]


def test_a_queue_that_takes_too_long_is_left(cloud):
    cloud.answer("tpu-vm describe", NOT_FOUND, code=1, first=True)
    cloud.answer("resources describe", NOT_FOUND, code=1, times=2, first=True)
    cloud.answers.insert(1, {"pattern": "resources describe", "out": queued("WAITING_FOR_RESOURCES"), "code": 0, "times": -1})
    done = up(cloud, "--queued", "--wait-min=0")
    assert done.returncode == 2
    assert "still WAITING_FOR_RESOURCES after 0 min" in done.stderr
    assert cloud.order(["resources create", "resources delete", "ssh"]) == ["resources create", "resources delete"]
    assert "--force" in cloud.lines("resources delete")[0]


def test_an_earlier_starts_request_is_waited_for(cloud):
    for state in ("ACTIVE", "PROVISIONING", "PROVISIONING", "PROVISIONING"):
        cloud.answer("resources describe", queued(state), times=1, first=True)
    assert up(cloud, "--spot").returncode == 0
    assert cloud.lines("create ") == []


def test_no_capacity_is_tried_again_and_half_a_tpu_deleted(cloud):
    found(cloud, (NOT_FOUND, 1, 1), (node("CREATING"), 0, 4), (node(), 0, -1))
    cloud.answer("tpu-vm create", 'ERROR: "code": 8, "There is no more capacity in the zone"', code=1, times=2, first=True)
    done = up(cloud)
    assert done.returncode == 0, done.stderr
    assert cloud.order(["tpu-vm create", "tpu-vm delete"]) == ["tpu-vm create", "tpu-vm delete"] * 2 + ["tpu-vm create"]


def test_no_capacity_ends_after_some_tries(cloud):
    cloud.answer("tpu-vm describe", NOT_FOUND, code=1, first=True)
    cloud.answer("tpu-vm create", "There is no more capacity in the zone", code=1, first=True)
    done = up(cloud, "--tries=3")
    assert done.returncode == 2
    assert "Tried 3 times" in done.stderr
    assert len(cloud.lines("tpu-vm create")) == 3


def test_what_trying_again_will_not_mend_is_said_at_once(cloud):
    found(cloud, (NOT_FOUND, 1, -1))
    cloud.answer("tpu-vm create", "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepod' has been exceeded. Limit: 0", code=1, first=True)
    done = up(cloud)
    assert done.returncode == 2
    assert "Quota limit" in done.stderr
    assert len(cloud.lines("tpu-vm create")) == 1


def test_after_a_preemption_it_goes_on(cloud):
    cloud.answer("worker.sh follow", "step 7\nworker.sh: over 75\n", times=1, first=True)
    cloud.answer("worker.sh follow", "Connection closed\n", times=1, first=True)
    taken_while_followed(cloud, looks=3)
    done = up(cloud)
    assert done.returncode == 0, done.stderr
    once = ["tpu-vm create", "scp", "scp", "setup", "worker.sh start", "follow"]
    assert cloud.order(STEPS)[4:] == [*once, "tpu-vm delete", *once, "scp", "scp", "setup", "worker.sh start", "follow"]
    assert len(set(cloud.lines("worker.sh start"))) == 1  # the same command again
    assert "gone (lost the connection" in done.stdout
    assert "has saved its state" in done.stdout


def test_a_crash_on_a_tpu_that_is_being_taken_is_a_preemption(cloud):
    cloud.answer("worker.sh follow", "peer died\nworker.sh: over 1\n", times=1, first=True)
    taken_while_followed(cloud, looks=3)
    assert up(cloud).returncode == 0
    assert len(cloud.lines("tpu-vm create")) == 2


def test_restarts_are_bounded(cloud):
    cloud.answer("worker.sh follow", "worker.sh: over 75\n", first=True)
    done = up(cloud, "--restarts=2")
    assert done.returncode == 2
    assert "preempted 3 times" in done.stderr
    assert len(cloud.lines("worker.sh start")) == 3


def test_what_another_terminal_has_started_again_is_only_followed(cloud):
    """Its start stopped this one's, which told that it has saved: to start once more would stop the other in turn."""
    cloud.answer("worker.sh state", "worker.sh: none\n", times=1, first=True)  # before the start
    cloud.answers.insert(1, {"pattern": "worker.sh state", "out": told(ELSEWHERE), "code": 0, "times": -1})
    cloud.answer("worker.sh follow", "worker.sh: over 75\n", times=1, first=True)
    done = up(cloud, ELSEWHERE)
    assert done.returncode == 0, done.stderr
    assert len(cloud.lines("worker.sh start")) == 1 and len(cloud.lines("follow")) == 2


def test_a_lost_connection_is_taken_up_again(cloud):
    cloud.answer("worker.sh follow", "Connection reset by peer\n", times=2, first=True)
    assert up(cloud).returncode == 0
    assert [line.rpartition(" ")[2].strip("'") for line in cloud.lines("follow")] == ["+1", "20", "20"]
    assert len(cloud.lines("worker.sh start")) == 1


def test_a_hiccup_of_gcloud_does_not_end_the_run(cloud):
    cloud.answer("tpu-vm describe", "ERROR: connection reset", code=1, times=3, first=True)
    assert up(cloud).returncode == 0


@pytest.mark.parametrize(("delete", "deleted"), [("never", False), ("success", False), ("always", True)])
def test_lpos_own_error_is_final(cloud, delete, deleted):
    cloud.answer("worker.sh follow", "lpo: error: bad key\nworker.sh: over 2\n", first=True)
    done = up(cloud, f"--delete={delete}")
    assert done.returncode == 2
    assert "bad key" in done.stdout
    assert len(cloud.lines("worker.sh start")) == 1
    assert bool(cloud.lines("tpu-vm delete")) is deleted
    assert ("make train-tpu-down" in done.stdout) is not deleted


def test_lpos_own_error_is_final_even_if_the_tpu_is_gone_by_then(cloud):
    cloud.answer("worker.sh follow", "worker.sh: over 2\n", first=True)
    taken_while_followed(cloud, looks=-1)
    assert up(cloud).returncode == 2
    assert len(cloud.lines("tpu-vm create")) == 1


def test_a_crash_on_a_tpu_that_is_there_ends_with_its_exit_code(cloud):
    cloud.answer("worker.sh follow", "worker.sh: over 134\n", first=True)
    assert up(cloud).returncode == 134
    assert len(cloud.lines("worker.sh start")) == 1
