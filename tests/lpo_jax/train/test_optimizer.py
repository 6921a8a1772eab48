"""Optimizers: each is optax's own, wherever it runs; what decays; the schedules; and a run that was killed goes on bit for bit."""

import json
import signal
import time
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec

from lpo_jax import config
from lpo_jax.config import Adafactor, AdamW, ConfigError, Lion, LoraConfig, MeshConfig, ModelConfig, Muon, Sgd
from lpo_jax.model.decoder import Model
from lpo_jax.sharding import make_mesh
from lpo_jax.train import checkpoint, state
from lpo_jax.train.checkpoint import Checkpoints, Progress
from lpo_jax.train.optimizer import _decayed, learning_rate, optimizer
from lpo_jax.train.weights import checkpoint_targets, restore_params
from tests.helpers.paths import REPO
from tests.helpers.training import MODEL, read_log, start

WIDE = ModelConfig("qwen2", 64, d_model=128, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=128, d_mlp=256, max_positions=64, qkv_bias=True)
"""Wide enough that Adafactor factors its matrices."""

COMMON = {"lr": 1e-2, "warmup_ratio": 0.25, "weight_decay": 0.1}
OPTIMIZERS = {
    "adamw": AdamW(**COMMON, b1=0.8, b2=0.95, eps=1e-6),
    "adamw bfloat16": AdamW(**COMMON, moments="bfloat16"),
    "adafactor": Adafactor(**COMMON),
    "adafactor with momentum": Adafactor(**COMMON, decay=0.7, relative=False, momentum=0.9, moments="bfloat16"),
    "lion": Lion(**COMMON, b1=0.85, moments="bfloat16"),
    "muon": Muon(**COMMON, momentum=0.9, b1=0.8, b2=0.95),
    "muon by shape": Muon(**COMMON, rms=None, moments="bfloat16", schedule="linear"),
    "sgd": Sgd(**COMMON, schedule="constant"),
    "sgd with momentum": Sgd(**COMMON, momentum=0.9, moments="bfloat16", schedule="wsd", cooldown_ratio=0.5),
}
STEPS = 4
FURTHER = {"adamw", "adafactor with momentum", "muon by shape", "sgd"}


def each(*, but="", only=""):
    names = [name for name in OPTIMIZERS if only in name and (not but or but not in name)]
    return pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in FURTHER else ()) for name in names])


def random_like(shapes, scale, rng):
    return jax.tree.map(lambda x: rng.normal(0, scale, x.shape).astype(x.dtype), shapes)


@cache
def start_and_gradients():
    """Parameters of `WIDE`, and a gradient for each step; the second is so large that it is clipped."""
    shapes, rng = Model(WIDE).shapes(), np.random.default_rng(0)
    return random_like(shapes, 0.02, rng), [random_like(shapes, scale, rng) for scale in (1e-4, 1.0, 1e-3, 2e-4)]


@cache
def trained(name, fsdp=1, tensor=1):
    """Parameters and optimizer state after the gradients' steps on this mesh, laid out as training lays them out."""
    model, mesh, (params, gradients) = (
        Model(WIDE),
        make_mesh(MeshConfig(1, fsdp, tensor), jax.devices()[: fsdp * tensor]),
        start_and_gradients(),
    )
    tx = optimizer(OPTIMIZERS[name], STEPS, model)
    places = state.state_shardings(model, tx, mesh)

    def step(now, gradient):
        updates, opt_state = tx.update(gradient, now[1], now[0])
        return optax.apply_updates(now[0], updates), opt_state

    with jax.set_mesh(mesh):
        now = jax.jit(lambda p: (p, tx.init(p)), out_shardings=(places.params, places.opt_state))(params)
        step = jax.jit(step, out_shardings=(places.params, places.opt_state))
        for gradient in gradients:
            now = step(now, jax.device_put(gradient, places.params))
    return now


def as_matrices(params):
    """Every layer's matrices as matrices, [inputs, outputs], under names of their own; everything else as it is."""
    found = {}
    for path, x in flatten_dict(params, sep=".").items():
        inputs = {"blocks.o": 2}.get(path, 1)
        if path.startswith("blocks.") and not path.endswith(("norm", "bias")):
            found |= {f"{path} {layer}": x[layer].reshape(int(np.prod(x.shape[1 : 1 + inputs])), -1) for layer in range(len(x))}
        else:
            found[path] = x
    return found


def clipped(gradient, norm=1.0):
    size = np.sqrt(sum(np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(gradient)))
    return jax.tree.map(lambda x: (x * min(1.0, norm / size)).astype(x.dtype), gradient)


def by_optax(chosen):
    """The same training by optax's own optimizers, with decay written out, and each layer's matrix an array of its own."""
    params, gradients = start_and_gradients()
    rate = learning_rate(chosen, STEPS)
    matrices = as_matrices(params)
    decays = {path: not path.endswith(("norm", "bias")) for path in matrices}
    groups = [matrices]
    if isinstance(chosen, AdamW):
        made = [optax.adamw(rate, chosen.b1, chosen.b2, chosen.eps, mu_dtype=chosen.moments, weight_decay=0.0)]
    elif isinstance(chosen, Lion):
        made = [optax.lion(rate, chosen.b1, chosen.b2, chosen.moments, weight_decay=0.0)]
    elif isinstance(chosen, Sgd):
        made = [optax.sgd(rate, chosen.momentum, accumulator_dtype=chosen.moments)]
    else:
        assert isinstance(chosen, Muon)
        blocks = [path for path in matrices if " " in path]
        groups = [{path: matrices[path] for path in blocks}, {path: x for path, x in matrices.items() if path not in blocks}]
        made = [
            optax.contrib.muon(rate, beta=chosen.momentum, eps=chosen.eps, mu_dtype=chosen.moments, consistent_rms=chosen.rms),
            optax.adamw(rate, chosen.b1, chosen.b2, chosen.eps, mu_dtype=chosen.moments, weight_decay=0.0, nesterov=True),
        ]
    states = [tx.init(group) for tx, group in zip(made, groups, strict=True)]
    update = [jax.jit(tx.update) for tx in made]  # XLA rounds sums of bfloat16 at other places than single operations do
    for number, gradient in enumerate(gradients):
        gradient = as_matrices(clipped(gradient))
        for index, group in enumerate(groups):
            updates, states[index] = update[index]({path: gradient[path] for path in group}, states[index], group)
            shrink = chosen.weight_decay * float(rate(number))
            groups[index] = {path: x + np.asarray(updates[path]) - np.float32(decays[path] * shrink) * x for path, x in group.items()}
    return {path: x for group in groups for path, x in group.items()}


def assert_close(found, expected, chosen, what=""):
    """To float32's rounding, or that of bfloat16 moments."""
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6 if chosen.moments is None else 2e-4, err_msg=what)


@each(but="adafactor")
def test_each_is_optaxs_own(name):
    found, expected = as_matrices(trained(name)[0]), by_optax(OPTIMIZERS[name])
    assert found.keys() == expected.keys()
    for path, x in expected.items():
        assert_close(found[path], x, OPTIMIZERS[name], path)


@each(only="adafactor")
def test_adafactor_is_optaxs_own(name):
    """Its scale, its clipping and its factors are a stacked array's, all layers together: optax's own of the same arrays."""
    chosen, (params, gradients) = OPTIMIZERS[name], start_and_gradients()
    rate = learning_rate(chosen, STEPS)
    tx = optax.adafactor(
        rate, decay_rate=chosen.decay, multiply_by_parameter_scale=chosen.relative, momentum=chosen.momentum, dtype_momentum=chosen.moments
    )
    found, kept = trained(name)
    update = jax.jit(tx.update)
    now, expected = tx.init(params), params
    for number, gradient in enumerate(gradients):
        updates, now = update(clipped(gradient), now, expected)
        shrink = np.float32(chosen.weight_decay * float(rate(number)))
        expected = jax.tree.map(lambda x, u, d, s=shrink: x + np.asarray(u) - d * s * x, expected, updates, _decayed(expected))
    jax.tree.map(lambda a, b: assert_close(a, b, chosen), found, expected)
    factored = next(x for x in jax.tree.leaves(kept, is_leaf=lambda x: hasattr(x, "v_row")) if hasattr(x, "v_row"))
    assert factored.v_row["blocks"]["up"].shape == (2, 128) and factored.v_col["blocks"]["up"].shape == (2, 256)


@each()
def test_eight_devices_train_as_one_and_each_holds_its_part(name):
    (one, kept), (many, cut) = trained(name), trained(name, fsdp=4, tensor=2)
    jax.tree.map(lambda a, b: assert_close(a, b, OPTIMIZERS[name]), many, one)
    whole = [x for x in jax.tree.leaves((many, cut)) if x.size > 1024 and x.sharding.shard_shape(x.shape) == x.shape]
    assert [x.shape for x in whole] == []
    assert jax.tree.map(lambda x: (x.shape, x.dtype), cut) == jax.tree.map(lambda x: (x.shape, x.dtype), kept)


def test_moments_and_factors_lie_as_their_parameters():
    model, mesh = Model(WIDE), make_mesh(MeshConfig(1, 4, 2))
    specs = {}
    for name, chosen in OPTIMIZERS.items():
        places = state.state_shardings(model, optimizer(chosen, STEPS, model), mesh).opt_state
        specs[name] = {jax.tree_util.keystr(path, simple=True, separator="."): x.spec for path, x in jax.tree.leaves_with_path(places)}
    row, column, whole = (
        {path.rpartition("blocks.")[2]: spec for path, spec in specs["adafactor"].items() if f".{name}.blocks" in path}
        for name in ("v_row", "v_col", "v")
    )
    # q [L, D, N, H] = [2, 128, 2, 128] lacks H, then D; o [L, N, H, D] the other way about; up [L, D, F] F, then D.
    assert [x["q"] for x in (row, column, whole)] == [
        PartitionSpec(None, "fsdp", "tensor"),
        PartitionSpec(None, "tensor", None),
        PartitionSpec(),
    ]
    assert [x["up"] for x in (row, column, whole)] == [PartitionSpec(None, "fsdp"), PartitionSpec(None, "tensor"), PartitionSpec()]
    assert whole["q_bias"] == PartitionSpec(None, "tensor", None) and row["q_bias"] == PartitionSpec()
    for name in ("adamw", "lion", "muon", "sgd with momentum"):
        kept = [spec for path, spec in specs[name].items() if path.endswith("blocks.q")]
        assert kept == [PartitionSpec(None, "fsdp", "tensor", None)] * (2 if name == "adamw" else 1), name


def test_muon_makes_each_adapter_orthogonal_and_leaves_no_one_out():
    """The singular values of an update are all about 1 times its scale: it has rank R, in every layer."""
    model = Model(MODEL, lora=LoraConfig(4, 8.0, targets=r"blocks\.(q|o|down)|head"))
    shapes, rng = state.trainable_shapes(model), np.random.default_rng(0)
    params, gradients = random_like(shapes, 1.0, rng), random_like(shapes, 1.0, rng)
    tx = optimizer(Muon(lr=1.0, warmup_ratio=0.0, rms=None, clip_norm=1e9), 10, model)
    updates, _ = jax.jit(lambda g, p: tx.update(g, tx.init(p), p))(gradients, params)
    for path, x in flatten_dict(updates, sep=".").items():
        first = int(path.startswith("blocks."))
        inputs = 1 if path.endswith(".b") else x.ndim - first - 1
        matrices = np.reshape(x, (-1, int(np.prod(x.shape[first : first + inputs])), int(np.prod(x.shape[first + inputs :]))))
        values = np.linalg.svd(matrices, compute_uv=False) / max(1, matrices.shape[2] / matrices.shape[1]) ** 0.5
        assert values.shape == (len(matrices), 4), path
        assert values.min() > 0.6 and values.max() < 1.3, (path, values)


def test_decay_spares_norms_and_biases():
    decayed = _decayed(Model(MODEL).shapes())
    flags = {jax.tree_util.keystr(path, simple=True, separator="."): flag for path, flag in jax.tree.leaves_with_path(decayed)}
    assert {name for name, flag in flags.items() if not flag} == {
        "blocks.attn_norm", "blocks.mlp_norm", "final_norm", "blocks.q_bias", "blocks.k_bias", "blocks.v_bias"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [0.0, 0.5, 1.0, 0.55, 0.1]),
        ({"schedule": "linear"}, [0.0, 0.5, 1.0, 0.55, 0.1]),
        ({"schedule": "wsd", "cooldown_ratio": 0.9}, [0.0, 0.5, 1.0, 0.55, 0.1]),
        ({"schedule": "wsd", "cooldown_ratio": 0.3}, [0.0, 0.5, 1.0, 1.0, 0.1]),
        ({"schedule": "wsd", "cooldown_ratio": 0.3, "warmup_ratio": 0.0}, [1.0, 1.0, 1.0, 1.0, 0.1]),
        ({"schedule": "constant", "final_lr_ratio": 0.0}, [0.0, 0.5, 1.0, 1.0, 1.0]),
    ],
)
def test_schedules(given, expected):
    lr = learning_rate(AdamW(**{"lr": 1.0, "warmup_ratio": 0.1, "final_lr_ratio": 0.1} | given), 100)
    assert [round(float(lr(s)), 3) for s in (0, 5, 10, 55, 100)] == expected
    np.testing.assert_allclose(lr(np.arange(100)), [lr(s) for s in range(100)], rtol=1e-6)


def test_a_cosine_and_a_line_differ_between_their_ends():
    cosine, line = (learning_rate(AdamW(lr=1.0, warmup_ratio=0.0, schedule=name), 100) for name in ("cosine", "linear"))
    assert [round(float(rate(25)), 3) for rate in (cosine, line)] == [0.854, 0.75]
    assert float(cosine(0)) == 1.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "stages.lpo.optim={name: adafactor, lr: 1e-3, b2: 0.9}",
            r"unknown key stages.lpo.optim.b2: valid keys: clip_norm, cooldown_ratio, decay",
        ),
        ("stages.lpo.optim={name: sgd, lr: 1e-3, eps: 1e-8}", "unknown key stages.lpo.optim.eps"),
        ("stages.lpo.optim={name: adam, lr: 1e-3}", "unknown value stages.lpo.optim.name=adam: did you mean 'adamw'?"),
        ("stages.lpo.optim={name: muon}", "missing key stages.lpo.optim.lr"),
        ("stages.lpo.optim={name: lion, lr: 1e-3, moments: int8}", "unknown value stages.lpo.optim.moments=int8"),
        (
            "stages.lpo.optim={lr: 1e-3, cooldown_ratio: 0.2}",
            "stages.lpo.optim: cooldown_ratio is an option of schedule wsd, this is cosine",
        ),
        ("stages.lpo.optim={lr: 1e-3, schedule: constant, final_lr_ratio: 0.2}", "final_lr_ratio: schedule constant doesn't fall"),
        ("stages.lpo.optim={lr: 1e-3, schedule: wsd, warmup_ratio: 0.6, cooldown_ratio: 0.5}", "are more than the whole stage; lower one"),
    ],
)
def test_an_option_that_it_does_not_have_is_refused(override, message):
    with pytest.raises(ConfigError, match=message) as error:
        config.load(REPO / "configs" / "tiny_cpu.yaml", [override])
    assert "\n" not in str(error.value)


def test_a_run_of_before_there_were_names_is_adamws():
    written = config.to_dict(config.load(REPO / "configs" / "tiny_cpu.yaml"))
    for stage in written["stages"].values():
        stage["optim"] = {key: stage["optim"][key] for key in ("lr", "warmup_ratio", "final_lr_ratio", "weight_decay", "b1", "b2", "eps")}
    found = config.from_dict(config.RunConfig, written)
    assert found == config.load(REPO / "configs" / "tiny_cpu.yaml")
    assert isinstance(found.stages["lpo"].optim, AdamW)


def two_stages(directory):
    """A run whose stages have different optimizers."""
    lion, muon = ({"name": name, "lr": 1e-2, "moments": "bfloat16"} for name in ("lion", "muon"))
    overrides = [f"run_dir={directory}", f"stages.sft.optim={json.dumps(lion)}", f"stages.lpo.optim={json.dumps(muon)}"]
    return config.load(REPO / "configs" / "tiny_cpu.yaml", overrides)


def test_each_stages_checkpoint_is_read_by_its_own_optimizer(tmp_path):
    run, model, mesh = two_stages(tmp_path), Model(MODEL), make_mesh(MeshConfig(1, 4, 2))
    params = random_like(model.shapes(), 1.0, np.random.default_rng(0))
    checkpoints, made = Checkpoints(epath.Path(tmp_path), run, -1), {}
    for number, (name, stage) in enumerate(run.stages.items(), 1):
        tx = optimizer(stage.optim, 10, model)
        some = jax.jit(
            lambda p, tx=tx: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), state.new_state(p, tx)),
            out_shardings=state.state_shardings(model, tx, mesh),
        )
        made[name] = some(params)
        checkpoints.save(made[name], Progress(name, 1, number, "key", {}), {})
        checkpoints._manager.wait_until_finished()
        progress, found = checkpoint.restore(epath.Path(tmp_path), checkpoint_targets(run, model, mesh))
        assert progress.stage == name
        jax.tree.map(np.testing.assert_array_equal, found, made[name])
        jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim) or pytest.fail(str(x.sharding)), found, made[name])
    checkpoints.close()
    assert jax.tree.structure(made["sft"]) != jax.tree.structure(made["lpo"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adafactor", "lion", "muon", "sgd with momentum"])
def test_kill_9_and_resume_is_bit_equal(name, seed_shards, tmp_path):
    """Also in the second stage, which has another optimizer than the first."""
    chosen = json.dumps(config.to_dict(OPTIMIZERS[name]))
    more = [f"stages.lpo.optim={chosen}", "checkpoint_every_steps=2"]
    straight = start(seed_shards["trimmed"], tmp_path / "straight", *more)
    text, _ = straight.communicate(timeout=300)
    assert straight.returncode == 0, text

    killed = start(seed_shards["trimmed"], tmp_path / "killed", *more)
    metrics, deadline = tmp_path / "killed" / "metrics.jsonl", time.time() + 200
    while time.time() < deadline and killed.poll() is None and not (metrics.is_file() and '"total_step": 14' in metrics.read_text()):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    names = (path.name.rpartition("_")[2] for path in (tmp_path / "killed" / "checkpoints").glob("step_*"))
    steps = {int(name) for name in names if name.isdigit()}  # one that was being written has another ending
    assert 8 < max(steps) < 20  # within lpo

    resumed = start(seed_shards["trimmed"], tmp_path / "killed", *more)
    text, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, text
    run = config.from_dict(config.RunConfig, json.loads((tmp_path / "killed" / "config.json").read_text()))
    found, expected = (restore_params(tmp_path / name, run)[1] for name in ("killed", "straight"))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert read_log(tmp_path / "killed") == read_log(tmp_path / "straight")
