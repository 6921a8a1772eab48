"""Search a mesh, a remat policy and a batch for a TPU slice: estimate all, drop what can't fit or win, compile the most promising."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from flax.traverse_util import flatten_dict
from tqdm import tqdm

from foundation.console import captured_stderr
from lpo_jax.config import ConfigError, MeshConfig, ModelConfig, RunConfig
from lpo_jax.config.schema import Remat
from lpo_jax.model import hf
from lpo_jax.model.decoder import Model
from lpo_jax.model.remat import kept_width
from lpo_jax.plan import abstract, flops, memory, planner
from lpo_jax.plan.chips import GIB, chip_of, topology_devices
from lpo_jax.plan.result import Plan
from lpo_jax.plan.rows import PlannedRows
from lpo_jax.sharding import MESH_AXES, make_mesh, row_cuts
from lpo_jax.train.stage import open_beside

_REMAT: tuple[Remat, ...] = get_args(Remat)  # the first keeps most, the last least


@dataclass(frozen=True)
class Candidate:
    """A config to try, and what is known of it before it is compiled."""

    config: RunConfig
    held: float  # bytes of a device: state and gradients
    kept: float  # bytes of a device: at least so many its layers keep for the backward pass
    tokens: int  # of a device, at once
    least_seconds: float  # a step's arithmetic at the chip's peak
    guess_seconds: float  # with the traffic between chips that such a mesh needs
    pairs: float  # in a step

    def needs_as_much_as(self, other: "Candidate") -> bool:
        """Whether a token needs at least the temporaries that one of `other` needs."""
        mine, its = self.config, other.config
        return mine.mesh.tensor == its.mesh.tensor and _REMAT.index(mine.model.remat) <= _REMAT.index(its.model.remat)

    def settings(self) -> list[str]:
        """The config's changes as they stand on a command line."""
        c = self.config
        batches = [f"stages.{name}.{key}={getattr(s, key)}" for name, s in c.stages.items() for key in ("batch_rows", "accumulate")]
        mesh = [f"mesh.{axis}={getattr(c.mesh, axis)}" for axis in MESH_AXES]
        return [*mesh, f"model.remat={c.model.remat}", *batches, f"eval_rows={c.eval_rows}"]


def search(config: RunConfig, stage: str, row: PlannedRows, cache: Path, tries: int) -> Plan | None:
    """Compile the most promising candidates, `tries` at most; prints a line for each, and returns the plan with most pairs a second.

    Not compiled are candidates that can't fit (`held` and `kept`), and those that can't beat the best so far (`least_seconds`). Nor are
    those that won't fit by what the compiler said of another one that didn't: with the same tensor axis, and a policy that keeps as much or
    more, a token takes at least the temporaries that it took there.

    Returns:
      None if nothing fits.
    """
    chip = chip_of(config)
    with captured_stderr("estimate"):
        candidates = sorted(_candidates(config, stage, row), key=lambda c: c.pairs / c.guess_seconds, reverse=True)
    fitting = [c for c in candidates if c.held + c.kept <= chip.hbm]
    print(f"{len(candidates)} candidates; {len(fitting)} may fit {chip.hbm / GIB:.2f} GiB; the {tries} most promising are compiled\n")
    print(f"{'GiB':>8} {'s/step':>8} {'MFU':>6} {'pairs/s':>8}   data x fsdp x expert x tensor, remat, rows / microbatches")
    best: tuple[Plan, Candidate] | None = None
    failed: list[tuple[Candidate, float]] = []  # with the bytes that a token needs
    with tqdm(total=tries, desc="search", unit="plan", leave=False) as bar:
        for c in fitting:
            if bar.n == tries:
                break
            if best is not None and c.pairs / c.least_seconds <= best[0].pairs_per_s:
                continue
            if any(c.needs_as_much_as(other) and c.held + c.tokens * each > chip.hbm for other, each in failed):
                continue
            found = planner.cached(c.config, stage, row, cache)
            bar.update()
            numbers = f"{found.used / GIB:8.2f} {found.step_seconds:8.2f} {found.mfu:6.0%} {found.pairs_per_s:8.1f}"
            what = f"{' x '.join(map(str, found.mesh.values()))}, {found.remat}, {found.rows} / {found.accumulate}"
            tqdm.write(f"{numbers if found.fits else 'does not fit' if found.too_large else 'does not compile':33}   {what}")
            if found.too_large:
                failed.append((c, max(0.0, (found.needed or chip.hbm) - c.held) / c.tokens))
            elif found.fits and (best is None or found.pairs_per_s > best[0].pairs_per_s):
                best = found, c
    if best is None:
        print("\nnothing fits: take a larger slice, LoRA (model.lora), or model.param_dtype=bfloat16")
        return None
    print(f"\nbest: {' '.join(best[1].settings())}\n")
    return best[0]


def _candidates(config: RunConfig, stage: str, row: PlannedRows) -> Iterator[Candidate]:
    chip, devices, architecture = chip_of(config), topology_devices(str(config.mesh.topology)), hf.planned_config(config.model)
    rows, accumulate = config.stages[stage].batch_rows, config.stages[stage].accumulate
    models = {remat: hf.open_model(_replaced(config, config.mesh, remat, rows, accumulate).model, planned=True) for remat in _REMAT}
    alone = make_mesh(MeshConfig(data=1), devices[:1])
    beside = open_beside(config, stage, None)
    traced = {remat: abstract.trace_step(model, config.stages[stage], row, alone, beside) for remat, model in models.items()}
    work = {remat: flops.count(step.jaxpr.jaxpr).executed for remat, step in traced.items()}
    for mesh_config in _meshes(config.mesh.topology, len(devices), architecture):
        try:
            mesh = make_mesh(mesh_config, devices)
        except ConfigError:  # the slice's axes don't give it
            continue
        ways = row_cuts(mesh.shape)
        smallest = dataclasses.replace(config.stages[stage], batch_rows=ways, accumulate=1)
        held = sum(memory.held(abstract.arguments(models["block"], smallest, row, mesh, beside)).values())
        for remat, model in models.items():
            for batch in {rows // 2, rows, 2 * rows} - {0}:
                for pieces in {accumulate, 2 * accumulate}:
                    if batch % (pieces * ways):
                        continue
                    tokens = batch // (pieces * ways) * row.tokens  # of a device, at once
                    kept = architecture.n_layers * tokens * kept_width(architecture, remat, mesh_config.tensor, mesh_config.expert) * 2
                    least = work[remat] * batch / rows / len(devices) / chip.flops
                    sent = _sent(model, mesh_config, pieces, tokens) / chip.sent_rate
                    tried = _replaced(config, mesh_config, remat, batch, pieces)
                    yield Candidate(tried, held, kept, tokens, least, max(least, sent), batch * row.mean_pairs)


def _meshes(topology: str | None, devices: int, c: ModelConfig) -> Iterator[MeshConfig]:
    """Every mesh of so many devices whose tensor axis cuts the heads evenly, and whose expert axis the experts, if there are any."""
    divisors = [d for d in range(1, devices + 1) if devices % d == 0]
    for tensor in (d for d in divisors if c.n_heads % d == 0 and d <= 16):
        for expert in (d for d in divisors if d == 1 or (c.experts and c.experts % d == 0)):
            for data in (d for d in divisors if devices % (d * tensor * expert) == 0):
                yield MeshConfig(data, devices // (data * tensor * expert), tensor, expert, topology)


def _replaced(config: RunConfig, mesh: MeshConfig, remat: Remat, rows: int, accumulate: int) -> RunConfig:
    """The config with another mesh, policy and batch. All stages take the same batch, because they run on the same mesh."""
    ways = mesh.data * mesh.fsdp * mesh.expert
    return dataclasses.replace(
        config,
        mesh=mesh,
        model=dataclasses.replace(config.model, remat=remat),
        stages={name: dataclasses.replace(s, batch_rows=rows, accumulate=accumulate) for name, s in config.stages.items()},
        eval_rows=-(-config.eval_rows // ways) * ways if ways > 0 else config.eval_rows,
    )


def _sent(model: Model, mesh: MeshConfig, microbatches: int, tokens: int) -> float:
    """Bytes that a device sends in a step, roughly, all in bfloat16 but for codes: the weights, which are gathered forwards and backwards; the
    gradients, which are reduced; and with a tensor axis four activations a layer (six, where they are recomputed). With an expert axis a layer's
    tokens go to all devices along it and come back as sums, as often."""
    sizes = {path: x.size * min(memory.bits(x.dtype), 16) / 8 for path, x in flatten_dict(model.base_shapes(), sep=".").items()}
    weights = sum(size / (mesh.expert if "expert_" in path else 1) for path, size in sizes.items()) / mesh.tensor
    trained = weights if model.lora is None else 0.0

    def others(ways: int) -> float:
        return (ways - 1) / ways

    gathered = microbatches * (2 * weights + trained) * others(mesh.fsdp)
    replicas = 2 * trained / mesh.fsdp * others(mesh.data) * microbatches
    activation = 2 * microbatches * tokens * model.config.d_model
    reductions = 6 if model.remat in ("block", "attention") else 4
    exchanged = reductions * model.config.n_layers * activation * (2 * others(mesh.tensor) + mesh.expert - 1)
    return gathered + replicas + exchanged
