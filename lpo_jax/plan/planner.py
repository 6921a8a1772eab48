"""Plan a run without its hardware: compile the very step that training runs, for a real TPU slice, on any CPU machine.

`libtpu` holds the whole TPU compiler. It needs no TPU to compile for one, and refuses a program that doesn't fit the memory. What a
compiled step costs gives a *roofline*: the time that its arithmetic, its memory traffic or its network traffic takes at the chip's peak
rate, whichever is longest. No run is faster; how much slower one is, only the hardware says.
"""

import dataclasses
import hashlib
import importlib.util
import json
import re
import tempfile
import time
from functools import cache
from importlib import metadata
from pathlib import Path

import jax

from data_pipeline import row as packed_row
from foundation.console import captured_stderr
from foundation.files import kept, read_json, write_json
from lpo_jax.config import RunConfig
from lpo_jax.model import hf
from lpo_jax.plan import abstract, flops, hlo, memory
from lpo_jax.plan.chips import chip_of, topology_devices
from lpo_jax.plan.result import Plan
from lpo_jax.plan.rows import PlannedRows
from lpo_jax.sharding import make_mesh
from lpo_jax.train import preflight
from lpo_jax.train.checkpoint import array_bytes
from lpo_jax.train.stage import open_beside

_COMPILERS = ("jax", "jaxlib", "libtpu")


def make(config: RunConfig, stage_name: str, row: PlannedRows) -> Plan:
    """Compile one stage's step of a run for `mesh.topology`; minutes, and some GiB of memory.

    Raises:
      ConfigError: no topology, no compiler, or mesh, batch and what there is of the data don't fit together.
    """
    chip, topology = chip_of(config), str(config.mesh.topology)
    source, stage, model = config.model, config.stages[stage_name], hf.open_model(config.model, planned=True)
    begin = time.perf_counter()
    with captured_stderr(f"compile for {topology}") as printed, tempfile.TemporaryDirectory() as dump:
        mesh = make_mesh(config.mesh, topology_devices(topology))
        preflight.look(config, mesh.size).raise_first()
        beside = open_beside(config, stage_name, None)
        arguments = abstract.arguments(model, stage, row, mesh, beside)
        traced = abstract.trace_step(model, stage, row, mesh, beside)
        filled, verdict, traffic, largest = memory.held(arguments), "", None, []
        try:
            filled = memory.used(abstract.compile_step(traced, mesh, dump), filled)
            traffic = hlo.traffic(abstract.dumped(dump, "step", "after_optimizations"), mesh.size)
            largest = memory.largest(abstract.dumped(dump, "step", "after_optimizations-buffer-assignment"))
        except jax.errors.JaxRuntimeError as error:
            verdict = abstract.verdict(error)
    counted = flops.count(traced.jaxpr.jaxpr)
    return Plan(
        model=source.path or model.config.family,
        parameters=sum(x.size for x in jax.tree.leaves(model.shapes())),
        trained="all"
        if source.lora is None
        else f"LoRA, rank {source.lora.rank}" + (f", {source.quantize} base" if source.quantize else ""),
        topology=topology,
        devices=mesh.size,
        mesh=dict(mesh.shape),
        remat=source.remat,
        stage=stage_name,
        rows=stage.batch_rows,
        accumulate=stage.accumulate,
        row=row,
        verdict=verdict,
        memory=filled,
        checkpoint=array_bytes(arguments[0]),
        largest=largest,
        model_flops=counted.executed - counted.recomputed,
        executed_flops=counted.executed,
        traffic=traffic,
        warnings=_compiler_warnings(printed.getvalue()) + memory.uncut(arguments, mesh, chip.hbm) + (traffic.warnings() if traffic else []),
        compile_seconds=round(time.perf_counter() - begin, 1),
        versions={name: metadata.version(name) for name in _COMPILERS},
    )


def cached(config: RunConfig, stage_name: str, row: PlannedRows, directory: Path) -> Plan:
    """`make`, or what it found the last time: by the content of everything that a plan depends on, the code too."""
    facts = {
        "architecture": dataclasses.asdict(hf.planned_config(config.model)),
        "model": dataclasses.asdict(config.model) | {"shape": None, "adapter": None},
        "stage": [stage_name, dataclasses.asdict(config.stages[stage_name]), config.eval_rows],
        "beside": str(open_beside(config, stage_name, None)),
        "mesh": dataclasses.asdict(config.mesh),
        "row": dataclasses.asdict(row),
        "code": [_code_hash(), *(metadata.version(name) for name in _COMPILERS if importlib.util.find_spec(name))],
    }
    file = directory / f"{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]}.json"
    return kept(
        file,
        lambda file: Plan.from_facts(read_json(file)),
        lambda: make(config, stage_name, row),
        lambda file, plan: write_json(file, plan.facts()),
    )


def code_files() -> list[Path]:
    """The source that a plan follows from: the learner's, and what says how a packed row looks."""
    return [*sorted(Path(__file__).parents[1].rglob("*.py")), Path(packed_row.__file__)]


@cache
def _code_hash() -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in code_files())).hexdigest()


def _compiler_warnings(printed: str) -> list[str]:
    """What a user can do something about, each once."""
    found = re.findall(r"Involuntary full rematerialization.*?HLO operation:? %\S+ = (\w+\[[\d,]*\]).*?op_name=\"([^\"]*)", printed)
    warnings = [f"XLA replicates a {what} to change its sharding (involuntary full rematerialization) in {where}" for what, where in found]
    return list(dict.fromkeys(warnings + re.findall(r"dimension '.*: replicated", printed)))
