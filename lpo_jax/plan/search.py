"""Search a mesh, a remat policy and a batch for a TPU slice: estimate all, drop what can't fit or win, compile the most promising."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import get_args

import jax
from tqdm import tqdm

from foundation.console import captured_stderr
from lpo_jax.config import ConfigError, LoraConfig, MeshConfig, ModelConfig, RunConfig
from lpo_jax.config.schema import Remat
from lpo_jax.model import hf
from lpo_jax.model.decoder import Model
from lpo_jax.model.remat import kept_width
from lpo_jax.plan import abstract, flops, memory, planner
from lpo_jax.plan.chips import GIB, chip_of, chips_in, doubled, topology_devices
from lpo_jax.plan.result import Plan
from lpo_jax.plan.rows import PlannedRows
from lpo_jax.sharding import MESH_AXES, make_mesh, row_cuts
from lpo_jax.train.stage import open_beside

_REMAT: tuple[Remat, ...] = get_args(Remat)  # the first keeps most, the last least
_DOUBLINGS = 4  # of the slice, where nothing fits it


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

    def temporaries(self, needed: float | None) -> float:
        """What a token takes besides the state, if the whole takes `needed` bytes (None: more than there are)."""
        return max(0.0, (needed or chip_of(self.config).hbm) - self.held) / self.tokens


def settings(c: RunConfig) -> list[str]:
    """What a search may change, as it stands on a command line."""
    batches = [f"stages.{name}.{key}={getattr(s, key)}" for name, s in c.stages.items() for key in ("batch_rows", "accumulate")]
    mesh = [f"mesh.{axis}={getattr(c.mesh, axis)}" for axis in ("topology", *MESH_AXES)]
    lora = [f"model.lora.rank={c.model.lora.rank}", f"model.lora.alpha={c.model.lora.alpha:g}"] if c.model.lora else []
    quantized = [f"model.quantize={c.model.quantize}"] if c.model.quantize else []
    return [*mesh, *lora, *quantized, f"model.remat={c.model.remat}", *batches, f"eval_rows={c.eval_rows}"]


@dataclass(frozen=True)
class Near:
    """A change with which every planned stage fits."""

    settings: list[str]  # what is other, as it stands on a command line
    plans: list[Plan]


def search(config: RunConfig, stage: str, cache: Path, tries: int) -> RunConfig | None:
    """Compile the most promising candidates, `tries` at most; prints a line for each, and returns the config with most pairs a second.

    Not compiled are candidates that can't fit (`held` and `kept`), and those that can't beat the best so far (`least_seconds`). Nor are
    those that won't fit by what the compiler said of another one that didn't: with the same tensor axis, and a policy that keeps as much or
    more, a token takes at least the temporaries that it took there.

    Returns:
      None if nothing fits.
    """
    row, chip = PlannedRows.of(config, stage), chip_of(config)
    with captured_stderr("estimate"):
        candidates = sorted(_candidates(config, stage, row), key=lambda c: c.pairs / c.guess_seconds, reverse=True)
    fitting = [c for c in candidates if c.held + c.kept <= chip.hbm]
    print(f"{len(candidates)} candidates; {len(fitting)} may fit {chip.hbm / GIB:.2f} GiB; the {tries} most promising are compiled\n")
    best: tuple[Plan, Candidate] | None = None

    def may_win(c: Candidate) -> bool:
        return best is None or c.pairs / c.least_seconds > best[0].pairs_per_s

    for c, found in _compiled(fitting, stage, row, cache, tries, may_win):
        if found.fits and (best is None or found.pairs_per_s > best[0].pairs_per_s):
            best = found, c
    if best is None:
        print("\nnothing fits: take a larger slice, LoRA (model.lora), or model.param_dtype=bfloat16")
        return None
    print(f"\nbest: {' '.join(settings(best[1].config))}\n")
    return best[1].config


def nearest(config: RunConfig, refused: Plan, others: Sequence[str], cache: Path, tries: int) -> Iterator[Near]:
    """The smallest change with which a stage fits that doesn't, and the other stages with it.

    On the same slice: of mesh, policy, microbatches and batch as few as possible are changed, the batch last, because it changes what is
    learnt. Where nothing helps there: adapters (then in four bits beneath them), and the next larger slice that does; both, if both do.

    Args:
      refused: the stage's plan.
      others: stages that must fit too.
      tries: compile so many at most on the same slice, with adapters, and on each larger slice.
    """
    print(f"\nlooking for the nearest change with which stage {refused.stage} fits")
    if here := _nearest(config, config, refused, others, cache, tries):
        yield here
        return
    lighter = _lighter(config)
    while lighter is not None:
        if near := _nearest(config, lighter, refused, others, cache, tries):
            yield near
            break
        lighter = _lighter(lighter)
    larger = config
    for _ in range(_DOUBLINGS):
        larger = dataclasses.replace(larger, mesh=dataclasses.replace(larger.mesh, topology=doubled(str(larger.mesh.topology))))
        try:
            topology_devices(str(larger.mesh.topology))
        except ConfigError:  # 1x2: no slice, but half of one
            continue
        if near := _nearest(config, larger, refused, others, cache, tries):
            yield near
            break


def _nearest(config: RunConfig, base: RunConfig, refused: Plan, others: Sequence[str], cache: Path, tries: int) -> Near | None:
    """The candidate of `base` that is nearest to `config`, of those that fit."""
    stage, row, chip = refused.stage, PlannedRows.of(config, refused.stage), chip_of(base)
    was, growth = config.stages[refused.stage], chips_in(str(base.mesh.topology)) // chips_in(refused.topology)
    times = {Fraction(1), Fraction(growth) if growth > 1 else Fraction(1, 2)}
    cuts = [2**power for power in range((was.batch_rows // was.accumulate).bit_length())]
    with captured_stderr("estimate"):
        candidates = list(_candidates(base, stage, row, times, cuts))

    def changes(c: Candidate) -> tuple[bool, bool, bool, bool]:
        mine = c.config.stages[stage]
        mesh = any(getattr(c.config.mesh, axis) != size for axis, size in refused.mesh.items())
        return mine.batch_rows != was.batch_rows, mesh, mine.accumulate != was.accumulate, c.config.model.remat != config.model.remat

    as_asked = [c for c in candidates if base is config and not any(changes(c))]
    failed = [(c, c.temporaries(refused.needed)) for c in as_asked]
    fitting = [c for c in candidates if c.held + c.kept <= chip.hbm and (base is not config or any(changes(c)))]
    fitting.sort(key=lambda c: (sum(changes(c)), changes(c), c.guess_seconds / c.pairs))
    for c, found in _compiled(fitting, stage, row, cache, tries, failed=failed):
        if found.fits:
            plans = [found, *(planner.cached(c.config, other, PlannedRows.of(config, other), cache) for other in others)]
            if all(plan.fits for plan in plans):
                before = settings(dataclasses.replace(config, mesh=MeshConfig(**refused.mesh, topology=refused.topology)))
                return Near([setting for setting in settings(c.config) if setting not in before], plans)
    return None


def _lighter(config: RunConfig) -> RunConfig | None:
    """The run with adapters in the place of the weights; one with adapters: with its frozen matrices in four bits."""
    model = config.model
    if model.lora is None:
        return dataclasses.replace(config, model=dataclasses.replace(model, lora=LoraConfig(rank=16, alpha=32.0)))
    if model.quantize is None and model.adapter is None:
        return dataclasses.replace(config, model=dataclasses.replace(model, quantize="nf4"))
    return None


def _compiled(
    candidates: Sequence[Candidate],
    stage: str,
    row: PlannedRows,
    cache: Path,
    tries: int,
    worth: Callable[[Candidate], bool] = lambda _: True,
    failed: Sequence[tuple[Candidate, float]] = (),
) -> Iterator[tuple[Candidate, Plan]]:
    """Compile candidates in their order, `tries` at most, and print a line for each.

    Args:
      worth: asked just before one is compiled.
      failed: candidates that don't fit, with the bytes that a token needs.
    """
    failed = list(failed)
    with tqdm(total=tries, desc="search", unit="plan", leave=False) as bar:
        for c in candidates:
            if bar.n == tries:
                break
            hbm = chip_of(c.config).hbm
            if not worth(c) or any(c.needs_as_much_as(other) and c.held + c.tokens * each > hbm for other, each in failed):
                continue
            if not bar.n:
                tqdm.write(
                    f"{'GiB':>8} {'s/step':>8} {'MFU':>6} {'pairs/s':>8}   data x fsdp x expert x tensor, remat, rows / microbatches"
                )
            found = planner.cached(c.config, stage, row, cache)
            bar.update()
            numbers = f"{found.used / GIB:8.2f} {found.step_seconds:8.2f} {found.mfu:6.0%} {found.pairs_per_s:8.1f}"
            what = f"{' x '.join(map(str, found.mesh.values()))}, {found.remat}, {found.rows} / {found.accumulate}"
            tqdm.write(f"{numbers if found.fits else 'does not fit' if found.too_large else 'does not compile':33}   {what}")
            if found.too_large:
                failed.append((c, c.temporaries(found.needed)))
            yield c, found


def _candidates(
    config: RunConfig,
    stage: str,
    row: PlannedRows,
    times: Collection[Fraction] = (Fraction(1, 2), Fraction(1), Fraction(2)),
    cuts: Collection[int] = (1, 2),
) -> Iterator[Candidate]:
    """Every mesh and policy, with so many `times` the stages' rows and so many microbatches in the place of one."""
    chip, devices, architecture = chip_of(config), topology_devices(str(config.mesh.topology)), hf.planned_config(config.model)
    mine = config.stages[stage]
    models = {remat: hf.open_model(dataclasses.replace(config.model, remat=remat), planned=True) for remat in _REMAT}
    alone = make_mesh(MeshConfig(data=1), devices[:1])
    beside = open_beside(config, stage, None)
    traced = {remat: abstract.trace_step(model, mine, row, alone, beside) for remat, model in models.items()}
    work = {remat: flops.count(step.jaxpr.jaxpr).executed for remat, step in traced.items()}
    for mesh_config in _meshes(config.mesh.topology, len(devices), architecture):
        try:
            mesh = make_mesh(mesh_config, devices)
        except ConfigError:  # the slice's axes don't give it
            continue
        ways = row_cuts(mesh.shape)
        smallest = dataclasses.replace(mine, batch_rows=ways, accumulate=1)
        held = sum(memory.held(abstract.arguments(models["block"], smallest, row, mesh, beside)).values())
        for remat, model in models.items():
            for more in times:
                for cut in cuts:
                    tried = _replaced(config, mesh_config, remat, more, cut)
                    if tried is None:
                        continue
                    batch, pieces = tried.stages[stage].batch_rows, tried.stages[stage].accumulate
                    tokens = batch // (pieces * ways) * row.tokens  # of a device, at once
                    kept = architecture.n_layers * tokens * kept_width(architecture, remat, mesh_config.tensor, mesh_config.expert) * 2
                    least = work[remat] * batch / mine.batch_rows / len(devices) / chip.flops
                    sent = _sent(model, mesh_config, pieces, tokens) / chip.sent_rate
                    yield Candidate(tried, held, kept, tokens, least, max(least, sent), batch * row.mean_pairs)


def _meshes(topology: str | None, devices: int, c: ModelConfig) -> Iterator[MeshConfig]:
    """Every mesh of so many devices whose tensor axis cuts the heads evenly, and whose expert axis the experts, if there are any."""
    divisors = [d for d in range(1, devices + 1) if devices % d == 0]
    for tensor in (d for d in divisors if c.n_heads % d == 0 and d <= 16):
        for expert in (d for d in divisors if d == 1 or (c.experts and c.experts % d == 0)):
            for data in (d for d in divisors if devices % (d * tensor * expert) == 0):
                yield MeshConfig(data, devices // (data * tensor * expert), tensor, expert, topology)


def _replaced(config: RunConfig, mesh: MeshConfig, remat: Remat, times: Fraction, cut: int) -> RunConfig | None:
    """The config with another mesh and policy, with so many times the rows in each stage's step, and each microbatch of it cut once more.
    None if a stage's rows don't go so. All stages are changed alike, because they run on the same mesh."""
    ways, stages = mesh.data * mesh.fsdp * mesh.expert, {}
    for name, stage in config.stages.items():
        rows, pieces = times * stage.batch_rows, stage.accumulate * cut
        if rows % (pieces * ways):
            return None
        stages[name] = dataclasses.replace(stage, batch_rows=int(rows), accumulate=pieces)
    model, eval_rows = dataclasses.replace(config.model, remat=remat), -(-config.eval_rows // ways) * ways
    return dataclasses.replace(config, mesh=mesh, model=model, stages=stages, eval_rows=eval_rows)


def _sent(model: Model, mesh: MeshConfig, microbatches: int, tokens: int) -> float:
    """Bytes that a device sends in a step, roughly, all in bfloat16 but for codes: the weights, which are gathered forwards and backwards; the
    gradients, which are reduced; and with a tensor axis four activations a layer (six, where they are recomputed). With an expert axis a layer's
    tokens go to all devices along it and come back as sums, as often."""
    leaves = jax.tree.leaves_with_path(model.base_shapes())  # of a quantised matrix: its codes and its scales
    sizes = ((jax.tree_util.keystr(path), x.size * min(memory.bits(x.dtype), 16) / 8) for path, x in leaves)
    weights = sum(size / (mesh.expert if "expert_" in path else 1) for path, size in sizes) / mesh.tensor
    trained = weights if model.lora is None else 0.0

    def others(ways: int) -> float:
        return (ways - 1) / ways

    gathered = microbatches * (2 * weights + trained) * others(mesh.fsdp)
    replicas = 2 * trained / mesh.fsdp * others(mesh.data) * microbatches
    activation = 2 * microbatches * tokens * model.config.d_model
    reductions = 6 if model.remat in ("block", "attention") else 4
    exchanged = reductions * model.config.n_layers * activation * (2 * others(mesh.tensor) + mesh.expert - 1)
    return gathered + replicas + exchanged
