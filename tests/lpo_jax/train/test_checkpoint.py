"""What goes wrong: steps that aren't finite, damaged checkpoints, full disks, signals. Each is survived or said, and nothing else changes."""

import logging
import resource
import shutil
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from lpo_jax import cli, config
from lpo_jax.config import MeshConfig
from lpo_jax.sharding import make_mesh
from lpo_jax.train import checkpoint, run_dir, state
from lpo_jax.train.checkpoint import Checkpoints, Progress
from lpo_jax.train.state import TrainState
from lpo_jax.train.stop import CheckpointError, TrainingError
from tests.helpers.paths import REPO
from tests.helpers.training import tiny_args

# --- Checkpoints, with a small state.


def small_state(fill, mesh=None):
    params = {
        "w": jnp.asarray(np.random.default_rng(fill).standard_normal((64, 256)), jnp.float32),
        "b": jnp.full((8,), fill, jnp.bfloat16),
    }
    made = TrainState(jnp.int32(fill), params, optax.adam(1e-3).init(params), jnp.int32(0), jnp.int32(0))
    mesh = mesh or make_mesh(MeshConfig(1, 8, 1))
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*["fsdp"][: x.ndim]))), made)


def targets_on(mesh):
    made = small_state(0, mesh)
    return {"lpo": jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), made)}


def settings(directory, *more):
    return config.load(REPO / "configs" / "tiny_cpu.yaml", [f"run_dir={directory}", "keep_checkpoints=2", *more])


def write(directory, scores, *more):
    """A checkpoint for each {step: pair accuracy or None}."""
    checkpoints = Checkpoints(epath.Path(directory), settings(directory, *more), -1)
    for step, score in scores.items():
        checkpoints.save(small_state(step), Progress("lpo", step, step, "key", {}), {} if score is None else {"pair_accuracy": score})
    checkpoints.close()


def kept(directory):
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


def test_the_newest_and_the_best_are_kept_and_found(tmp_path):
    write(tmp_path, {1: None, 2: 0.5, 3: 0.75, 4: 0.75, 5: 0.5, 6: None, 7: 0.25})
    assert kept(tmp_path) == ["step_4", "step_6", "step_7"]
    targets = targets_on(make_mesh(MeshConfig(1, 8, 1)))
    newest = checkpoint.restore(epath.Path(tmp_path), targets)
    assert newest[0].step == 7
    for metric, step in ((None, 7), ("pair_accuracy", 4)):
        progress, found = checkpoint.restore_params(epath.Path(tmp_path), targets["lpo"].params, metric)
        assert progress.step == step
        jax.tree.map(np.testing.assert_array_equal, found, small_state(step).params)
    assert checkpoint.newest(epath.Path(tmp_path)) == f"step 7 {int(state.fingerprint(newest[1]))}"
    assert checkpoint.newest(epath.Path(tmp_path / "nothing")) == ""
    assert checkpoint.restore(epath.Path(tmp_path / "nothing"), targets) is None
    assert checkpoint.restore_params(epath.Path(tmp_path / "nothing"), targets["lpo"].params) is None


def bytes_read(read):
    """What `read` takes from files, by tensorstore's own count."""

    def count():
        return sum(metric["values"][0]["value"] for metric in tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read"))  # fmt: skip

    before = count()
    read()
    return count() - before


def test_who_wants_parameters_reads_no_moments(tmp_path):
    """Adam's moments are two thirds of a state; as drawn here they can't be compressed."""
    made = small_state(1)
    noise = lambda x: jax.random.normal(jax.random.key(x.size), x.shape, x.dtype) if x.ndim else x  # noqa: E731
    made = made.replace(opt_state=jax.tree.map(noise, made.opt_state))
    checkpoints = Checkpoints(epath.Path(tmp_path), settings(tmp_path), -1)
    checkpoints.save(made, Progress("lpo", 1, 1, "key", {}), {})
    checkpoints.close()
    shapes = targets_on(make_mesh(MeshConfig(1, 8, 1)))["lpo"]
    alone = bytes_read(lambda: checkpoint.restore_params(epath.Path(tmp_path), shapes.params))
    whole = bytes_read(lambda: checkpoint.restore(epath.Path(tmp_path), {"lpo": shapes}))
    params = sum(x.nbytes for x in jax.tree.leaves(made.params))
    assert 0.8 * params < alone < 1.2 * params + 10_000
    assert whole > 2.5 * params


def test_a_checkpoint_with_damaged_parameters_is_passed_over(tmp_path, monkeypatch, caplog):
    write(tmp_path, {1: None, 2: None})
    print_of = checkpoint.fingerprint
    flipped = lambda params: print_of(params) + (jax.tree.leaves(params)[0][0] == 2)  # noqa: E731 (step 2's, as if a bit were lost)
    monkeypatch.setattr(checkpoint, "fingerprint", flipped)
    shapes = targets_on(make_mesh(MeshConfig(1, 8, 1)))["lpo"].params
    _, found = checkpoint.restore_params(epath.Path(tmp_path), shapes)
    jax.tree.map(np.testing.assert_array_equal, found, small_state(1).params)
    assert "step_2 is damaged (its content isn't what was written); going on from step_1" in caplog.text


def test_another_mesh_reads_the_same_bits(tmp_path):
    write(tmp_path, {3: None})
    one = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    for mesh in (one, make_mesh(MeshConfig(4, 2, 1))):
        _, found = checkpoint.restore(epath.Path(tmp_path), targets_on(mesh))
        jax.tree.map(np.testing.assert_array_equal, found, small_state(3))
        assert found.params["w"].sharding.mesh == mesh
        assert int(state.fingerprint(found)) == int(state.fingerprint(small_state(3)))
    flipped = small_state(3)
    flipped.params["w"] = -flipped.params["w"]
    assert int(state.fingerprint(flipped)) != int(state.fingerprint(small_state(3)))


def data_file(step):
    return max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(step):
    data_file(step).write_bytes(data_file(step).read_bytes()[:1000])


def flip(step):
    content = bytearray(data_file(step).read_bytes())
    content[len(content) // 2] ^= 1
    data_file(step).write_bytes(content)


def remove(step):
    data_file(step).unlink()


def exchange(step):
    """Files that are whole, but another state's."""
    shutil.rmtree(step / "state")
    shutil.copytree(step.with_name("step_1") / "state", step / "state")


def empty(step):
    for path in (step / "progress").iterdir():
        path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip, remove, exchange, empty])
def test_a_damaged_checkpoint_is_passed_over_and_put_aside(tmp_path, damage, caplog):
    write(tmp_path, {1: None, 2: None})
    damage(tmp_path / "checkpoints" / "step_2")
    path, targets = epath.Path(tmp_path), targets_on(make_mesh(MeshConfig(1, 8, 1)))
    with caplog.at_level(logging.WARNING):
        progress, found = checkpoint.restore(path, targets)
    assert progress.step == 1
    jax.tree.map(np.testing.assert_array_equal, found, small_state(1))
    said = [r.getMessage() for r in caplog.records if r.name == "lpo_jax.train.checkpoint"]
    assert len(said) == 1 and "step_2 is damaged (" in said[0] and said[0].endswith("; going on from step_1")
    assert kept(tmp_path) == ["step_1", "step_2"]  # reading changes nothing

    again = Checkpoints(path, settings(tmp_path), progress.total_step)
    again.save(small_state(2), Progress("lpo", 2, 2, "key", {}), {})
    again.close()
    assert kept(tmp_path) == ["damaged_step_2", "step_1", "step_2"]
    assert checkpoint.restore(path, targets)[0].step == 2


def test_if_all_are_damaged_the_run_does_not_start_over(tmp_path):
    write(tmp_path, {1: None, 2: None})
    for step in (1, 2):
        remove(tmp_path / "checkpoints" / f"step_{step}")
    with pytest.raises(TrainingError, match=r"step_2 is damaged .*no other checkpoint there can be read; restore one, or delete"):
        checkpoint.restore(epath.Path(tmp_path), targets_on(make_mesh(MeshConfig(1, 8, 1))))


def test_a_write_that_fails_is_said_and_the_last_good_checkpoint_stays(tmp_path):
    checkpoints = Checkpoints(epath.Path(tmp_path), settings(tmp_path, "keep_checkpoints=1"), -1)
    checkpoints.save(small_state(1), Progress("lpo", 1, 1, "key", {}), {})
    checkpoints._manager.wait_until_finished()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # no file grows beyond: as a full disk, but only for this process
    try:
        with pytest.raises(  # noqa: PT012 (the one or the other)
            CheckpointError, match=r"a checkpoint couldn't be written to .*File too large.*stay; make room.*same command again"
        ):
            checkpoints.save(small_state(2), Progress("lpo", 2, 2, "key", {}), {})
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.restore(epath.Path(tmp_path), targets_on(make_mesh(MeshConfig(1, 8, 1))))[0].step == 1


# --- The run directory.


def test_too_little_space_is_known_before_the_first_step(seed_shards, tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 300_000))
    assert cli.main(tiny_args(seed_shards["trimmed"], tmp_path / "run")) == 2
    said = capsys.readouterr().err
    assert "4 checkpoints (keep_checkpoints, the best and the one being written)" in said and "lower keep_checkpoints" in said
    assert not (tmp_path / "run" / "config.json").exists()


def test_space_that_checkpoints_hold_already_counts(tmp_path, monkeypatch):
    write(tmp_path, {1: None, 2: None})
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 300_000))
    run_dir._check_space(epath.Path(tmp_path), settings(tmp_path), 100_000)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(config.ConfigError, match="GB too little free"):
        run_dir._check_space(epath.Path(tmp_path), settings(tmp_path), 100_000)


# --- Signals.
