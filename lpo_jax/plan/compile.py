"""Plan a run without its hardware: compile the very step that training runs, for a real TPU slice, on any CPU machine.

`libtpu` holds the whole TPU compiler. It needs no TPU to compile for one, and refuses a program that doesn't fit the memory. What a
compiled step costs gives a *roofline*: the time that its arithmetic, its memory traffic or its network traffic takes at the chip's peak
rate, whichever is longest. No run is faster; how much slower one is, only the hardware says.
"""

import dataclasses
import hashlib
import importlib.util
import json
import math
import os
import re
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from data_pipeline.row import COLUMNS
from foundation.console import captured_stderr
from foundation.files import write_json
from lpo_jax.batch import TeacherTop, TreeBatch
from lpo_jax.config import ConfigError, PlanConfig, RunConfig, StageConfig
from lpo_jax.model import hf
from lpo_jax.model.decoder import Model
from lpo_jax.plan import flops, hlo
from lpo_jax.sharding import make_mesh
from lpo_jax.train.optimizer import optimizer
from lpo_jax.train.state import TrainState, abstract_state, batch_sharding, check_rows, frozen_shapes, frozen_shardings
from lpo_jax.train.step import Teacher, make_train_step
from lpo_jax.train.teacher import open_teacher

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """A TPU device as JAX counts them: a chip, but half a tpu7x. Rates from cloud.google.com/tpu/docs, `hbm` from the compiler."""

    hbm: float  # bytes that a program may use
    flops: float  # bfloat16, a second
    hbm_rate: float  # bytes a second
    sent_rate: float  # bytes a second to its neighbours, all links together, one way


CHIPS = {
    "v4": Chip(30.75 * GIB, 275e12, 1200e9, 300e9),
    "v5e": Chip(15.75 * GIB, 197e12, 819e9, 200e9),
    "v5p": Chip(95.73 * GIB, 459e12, 2765e9, 600e9),
    "v6e": Chip(31.24 * GIB, 918e12, 1638e9, 400e9),
    "tpu7x": Chip(94.74 * GIB, 1153.5e12, 3690e9, 300e9),
}


@dataclass(frozen=True)
class PlannedRows:
    """The static shape of a packed row, and how full it is."""

    tokens: int  # T
    scored: int  # N
    pairs: int  # P, the most in any row
    mean_pairs: float

    @staticmethod
    def assumed(config: PlanConfig) -> "PlannedRows":
        """Rows of shards that aren't built yet."""
        pairs = config.row_tokens / config.pair_tokens
        return PlannedRows(config.row_tokens, math.ceil(config.row_tokens * config.scored_share), math.ceil(2 * pairs), pairs)


@dataclass(frozen=True)
class Plan:
    """What the compiler said about a step, and what follows. Bytes are those of one device, FLOPs those of all."""

    model: str
    parameters: int
    trained: str  # "all", or the adapters
    topology: str
    devices: int
    mesh: dict[str, int]
    remat: str
    stage: str
    rows: int  # in a step
    accumulate: int
    row: PlannedRows
    verdict: str  # empty where it fits, else the compiler's own words
    memory: dict[str, int]  # by kind; without "activations" where it doesn't fit
    largest: list[str]  # temporaries
    model_flops: int
    executed_flops: int  # with what rematerialisation repeats
    traffic: hlo.Traffic | None
    warnings: list[str]
    compile_seconds: float
    versions: dict[str, str]

    @property
    def fits(self) -> bool:
        return not self.verdict

    @property
    def too_large(self) -> bool:
        """Whether memory is what the compiler has against it."""
        return "RESOURCE_EXHAUSTED" in self.verdict

    @property
    def chip(self) -> Chip:
        return CHIPS[self.topology.partition(":")[0]]

    @property
    def used(self) -> int:
        """Bytes of a device's memory, as far as they are known."""
        return sum(self.memory.values())

    @property
    def needed(self) -> float | None:
        """The bytes of a device that the compiler names in its verdict."""
        match = re.search(r"\(([\d.]+)([KMGT])\) exceeds", self.verdict)
        return float(match[1]) * 1024 ** (1 + "KMGT".index(match[2])) if match else None

    @property
    def seconds(self) -> dict[str, float]:
        """How long a step takes at the chip's peak rates, by what limits it."""
        times = {"compute": self.executed_flops / self.devices / self.chip.flops}
        if self.traffic is not None:
            times["memory"] = self.traffic.memory / self.chip.hbm_rate
            times["network"] = sum(self.traffic.sent.values()) / self.chip.sent_rate
        return times

    @property
    def step_seconds(self) -> float:
        """The roofline: everything overlaps but the slowest."""
        return max(self.seconds.values())

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation at the roofline; what rematerialisation repeats is no use."""
        return self.model_flops / (self.step_seconds * self.devices * self.chip.flops)

    @property
    def tokens_per_s(self) -> float:
        return self.rows * self.row.tokens / self.step_seconds

    @property
    def pairs_per_s(self) -> float:
        return self.rows * self.row.mean_pairs / self.step_seconds

    def facts(self) -> dict[str, Any]:
        """All of it, with what is derived, as JSON has it."""
        derived = ("fits", "used", "seconds", "step_seconds", "mfu", "tokens_per_s", "pairs_per_s")
        return dataclasses.asdict(self) | {"hbm": int(self.chip.hbm)} | {name: getattr(self, name) for name in derived}

    @staticmethod
    def from_facts(facts: dict[str, Any]) -> "Plan":
        """The inverse of `facts`."""
        nested = {"row": PlannedRows(**facts["row"]), "traffic": facts["traffic"] and hlo.Traffic(**facts["traffic"])}
        return Plan(**{f.name: facts[f.name] for f in dataclasses.fields(Plan)} | nested)


_LIBTPU = {  # read once, when libtpu is loaded
    "TPU_SKIP_MDS_QUERY": "1",  # don't ask the metadata server of a cloud machine ...
    "TPU_WORKER_HOSTNAMES": "localhost",  # ... which hosts there are
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # without a TPU, several processes may compile
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "1",  # the warnings that a plan repeats
}


def topology_devices(name: str) -> list[Any]:
    """The devices of a TPU slice in JAX's names, e.g. ``v5e:4x4`` or ``v5p:2x2x2``: to compile for, not to run on.

    Raises:
      ConfigError: libtpu isn't installed, or it knows no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("a plan needs the TPU compiler, which runs on any CPU machine: pip install 'lpo-jax[tpu]', or libtpu==0.0.52")
    for key, value in _LIBTPU.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    # A v4 chip's two cores are one device, as a run on it sees them.
    options = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    try:
        with captured_stderr():
            return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"mesh.topology {name!r}: {error}; names are like v5e:4x4, v6e:4x8, v5p:2x2x4, v4:2x2x2, tpu7x:2x2x1") from None


def chip(config: RunConfig) -> Chip:
    """The chip of `mesh.topology`.

    Raises:
      ConfigError: there is no topology, or its generation is unknown.
    """
    if config.mesh.topology is None:
        raise ConfigError("set mesh.topology to the TPU slice to plan for, e.g. mesh.topology=v5e:4x4")
    generation = config.mesh.topology.partition(":")[0]
    if generation not in CHIPS:
        raise ConfigError(f"mesh.topology {config.mesh.topology!r}: the generation is one of {', '.join(CHIPS)}, as in v5e:4x4")
    return CHIPS[generation]


def open_model(config: RunConfig) -> Model:
    """The model that a config describes, without looking at weights."""
    source = config.model
    return Model(hf.planned_config(source), source.compute_dtype, source.param_dtype, source.remat, source.lora)


def make(config: RunConfig, stage_name: str, row: PlannedRows) -> Plan:
    """Compile one stage's step of a run for `mesh.topology`; minutes, and some GiB of memory.

    Raises:
      ConfigError: no topology, no compiler, or mesh and batch don't fit together.
    """
    chip(config)  # or an error
    topology, source, stage, model = str(config.mesh.topology), config.model, config.stages[stage_name], open_model(config)
    begin = time.perf_counter()
    with captured_stderr(f"compile for {topology}") as printed, tempfile.TemporaryDirectory() as dump:
        mesh = make_mesh(config.mesh, topology_devices(topology))
        check_rows(config, mesh)
        teacher = open_teacher(config, stage_name, None)
        arguments = abstract_arguments(model, stage, row, mesh, teacher)
        traced = trace_step(model, stage, row, mesh, teacher)
        memory, verdict, traffic, largest = held(arguments), "", None, []
        try:
            compiled = _compile(traced, mesh, dump)
            memory = used_memory(compiled, memory)
            text, report = _dumped(dump, "after_optimizations"), _dumped(dump, "after_optimizations-memory-usage-report")
            traffic, largest = hlo.traffic(text, mesh.size), _largest(report)
        except jax.errors.JaxRuntimeError as error:
            verdict = str(error).partition(" HLO module")[0].partition("\n")[0]
    counted = flops.count(traced.jaxpr.jaxpr)
    return Plan(
        model=source.path or model.config.family,
        parameters=sum(x.size for x in jax.tree.leaves(model.shapes())),
        trained="all" if source.lora is None else f"LoRA, rank {source.lora.rank}",
        topology=topology,
        devices=mesh.size,
        mesh=dict(mesh.shape),
        remat=source.remat,
        stage=stage_name,
        rows=stage.batch_rows,
        accumulate=stage.accumulate,
        row=row,
        verdict=verdict,
        memory=memory,
        largest=largest,
        model_flops=counted.executed - counted.recomputed,
        executed_flops=counted.executed,
        traffic=traffic,
        warnings=[
            *_compiler_warnings(printed.getvalue()),
            *_uncut(arguments, mesh, chip(config).hbm),
            *(traffic.warnings() if traffic else []),
        ],
        compile_seconds=round(time.perf_counter() - begin, 1),
        versions={name: metadata.version(name) for name in ("jax", "jaxlib", "libtpu")},
    )


def cached(config: RunConfig, stage_name: str, row: PlannedRows, directory: Path) -> Plan:
    """`make`, or what it found the last time: by the content of everything that a plan depends on, this package's code too."""
    facts = {
        "shape": dataclasses.asdict(hf.planned_config(config.model)),
        "model": dataclasses.asdict(config.model) | {"shape": None, "adapter": None},
        "stage": [stage_name, dataclasses.asdict(config.stages[stage_name]), config.eval_rows],
        "teacher": str(open_teacher(config, stage_name, None)),
        "mesh": dataclasses.asdict(config.mesh),
        "row": dataclasses.asdict(row),
        "code": [_code_hash(), *(metadata.version(name) for name in ("jax", "jaxlib", "libtpu") if importlib.util.find_spec(name))],
    }
    file = directory / f"{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]}.json"
    if file.is_file():
        return Plan.from_facts(json.loads(file.read_text()))
    plan = make(config, stage_name, row)
    write_json(file, plan.facts())
    return plan


@cache
def _code_hash() -> str:
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def abstract_batch(stage: StageConfig, row: PlannedRows, mesh: Mesh, top_k: int = 0) -> TreeBatch:
    """A step's batch as `jax.ShapeDtypeStruct`s: [microbatches, rows, ...], laid out as the feed lays it out."""
    cut = batch_sharding(mesh, accumulated=True)

    def leaf(*width: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct((stage.accumulate, stage.batch_rows // stage.accumulate, *width), dtype, sharding=cut)

    columns = {column.name: leaf(getattr(row, column.axis), dtype=jnp.dtype(column.dtype)) for column in COLUMNS}
    N = row.scored
    taught = TeacherTop(leaf(N, top_k), leaf(N, top_k, dtype=jnp.float32), leaf(N, dtype=jnp.float32)) if top_k else None
    return TreeBatch(**columns, teacher=taught)


def abstract_arguments(
    model: Model, stage: StageConfig, row: PlannedRows, mesh: Mesh, teacher: Teacher | None = None
) -> tuple[TrainState, Any, TreeBatch]:
    """The train step's arguments (state, frozen, batch) as `jax.ShapeDtypeStruct`s with their shardings."""
    running = teacher.model if teacher else None
    shapes, shardings = frozen_shapes(model, running), frozen_shardings(model, mesh, running)
    frozen = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    batch = abstract_batch(stage, row, mesh, teacher.top_k if teacher else 0)
    return abstract_state(model, optimizer(stage.optim, 1000), mesh), frozen, batch


def trace_step(model: Model, stage: StageConfig, row: PlannedRows, mesh: Mesh, teacher: Teacher | None = None) -> jax.stages.Traced:
    """The train step of `lpo_jax.train.step` on abstract arguments; ``.jaxpr`` is what it computes."""
    # The schedule's length is a constant of the step and changes nothing else.
    step = make_train_step(model, stage.objective, optimizer(stage.optim, 1000), mesh, teacher=teacher)
    arguments = abstract_arguments(model, stage, row, mesh, teacher)
    with jax.set_mesh(mesh):
        return step.trace(*arguments)  # type: ignore[attr-defined]


def compile_step(model: Model, stage: StageConfig, row: PlannedRows, mesh: Mesh, dump: str | None = None) -> jax.stages.Compiled:
    """Compile the train step for the mesh's devices, which may be a topology's; `dump` is a directory for the compiler's reports.

    Raises:
      jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED with the compiler's own figures, where it doesn't fit.
    """
    return _compile(trace_step(model, stage, row, mesh), mesh, dump)


def _compile(traced: jax.stages.Traced, mesh: Mesh, dump: str | None) -> jax.stages.Compiled:
    # `Compiled.as_text` can't read every program of a newer libtpu; the compiler writes its own text.
    options = {"xla_dump_to": dump, "xla_dump_hlo_as_text": True, "xla_dump_hlo_module_re": "jit_step"} if dump else None
    with jax.set_mesh(mesh):
        return traced.lower().compile(compiler_options=options)


def _dumped(directory: str, name: str) -> str:
    (file,) = Path(directory).glob(f"*.jit_step.*.{name}.txt")
    return file.read_text()


def held(arguments: tuple[TrainState, Any, TreeBatch]) -> dict[str, int]:
    """Bytes that each device must hold whatever the compiler does, by kind. Gradients are added up in float32 or wider."""
    state, frozen, batch = arguments
    wide = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.promote_types(x.dtype, jnp.float32), sharding=x.sharding), state.params)
    return {
        "parameters": _bytes(state.params) + _bytes(frozen),
        "optimizer": _bytes(state.opt_state) + _bytes((state.step, state.skipped, state.skipped_in_row)),
        "gradients": _bytes(wide),
        "batch": _bytes(batch),
    }


def used_memory(compiled: jax.stages.Compiled, held: dict[str, int]) -> dict[str, int]:
    """Bytes on each device, by kind: `held`; ``activations``, which are all other temporaries at their peak, gathered weights among
    them; and ``program``, which is its code, outputs that reuse no argument, and padding by the device's tiling.
    """
    stats: Any = compiled.memory_analysis()
    arguments = held["parameters"] + held["optimizer"] + held["batch"]
    gradients = min(held["gradients"], stats.temp_size_in_bytes)
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    program = stats.generated_code_size_in_bytes + outputs + stats.argument_size_in_bytes - arguments
    return held | {"gradients": gradients, "activations": stats.temp_size_in_bytes - gradients, "program": program}


def _bytes(tree: Any) -> int:
    """What one device holds of a tree of `jax.ShapeDtypeStruct`s with shardings."""
    return sum(_shard_size(x) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _shard_size(x: Any) -> int:
    return math.prod(x.sharding.shard_shape(x.shape))


def _largest(report: str, number: int = 3) -> list[str]:
    """The largest temporaries of the compiler's memory report, each with an array that lies there: "250.00MiB f32[2048,32000]"."""
    found = []
    for size, arrays in re.findall(r"^ *\S+\( *\d+%\); +(\S+[MG]iB); +\d+; +\d+; (.*)$", report, re.MULTILINE)[:number]:
        one_of_them = max(re.findall(r"[a-z]\w*\[[\d,]*\]", arrays), key=hlo.array_bytes)  # they lie there at different times
        found.append(f"{size} {one_of_them}")
    return found


def _compiler_warnings(printed: str) -> list[str]:
    """What a user can do something about, each once."""
    found = re.findall(r"Involuntary full rematerialization.*?HLO operation:? %\S+ = (\w+\[[\d,]*\]).*?op_name=\"([^\"]*)", printed)
    warnings = [
        f"XLA replicates a {array} to change its sharding (involuntary full rematerialization) in {where}" for array, where in found
    ]
    return list(dict.fromkeys(warnings + re.findall(r"dimension '.*: replicated", printed)))


def _uncut(arguments: tuple[TrainState, Any, TreeBatch], mesh: Mesh, hbm: float) -> list[str]:
    """Parameters that a device holds more of than its share, where that is a hundredth of its memory or more."""
    warnings = []
    for path, x in jax.tree.leaves_with_path((arguments[0].params, arguments[1])):
        ways = x.size // _shard_size(x)
        excess = (_shard_size(x) - x.size // (mesh.shape["fsdp"] * mesh.shape["tensor"])) * x.dtype.itemsize
        if excess > hbm / 100:
            name = ".".join(key.key for key in path[1:])
            warnings.append(f"{name} is cut {ways} ways, not fsdp * tensor: {excess / GIB:.2f} GiB more than its share on every device")
    return warnings
