"""A plan of `lpo serve` without its hardware: the very programs that read prompts and extend rows, compiled for a TPU slice on any CPU machine.

No step is faster than the slowest of three: the matrix products at the chip's peak, what must be read at its memory's rate (every weight once, of
an expert once a proposed token, and the pages of the texts), and what the compiled program sends between chips.

Dims: R rows, M pages of a row, k tokens of a block, as in `lpo_jax.decode.engine`.
"""

import dataclasses
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

import jax
import jax.numpy as jnp

from foundation.console import captured_stderr
from foundation.files import Json
from lpo_jax.config import ConfigError, MeshConfig, ModelConfig, ModelSource, load
from lpo_jax.decode.engine import Engine
from lpo_jax.decode.load import ROWS_PER_CUT, Models
from lpo_jax.decode.request import LoadedModel, check_model
from lpo_jax.decode.rules.codecode import CoDecoding
from lpo_jax.decode.sampler import BLOCKS, PAGE
from lpo_jax.decode.tables import Chunks, page_slots, pages_of
from lpo_jax.model import hf
from lpo_jax.model.decoder import Model, Params
from lpo_jax.plan import abstract, hlo
from lpo_jax.plan.chips import Chip, chip_in, topology_devices
from lpo_jax.plan.memory import bytes_of, in_words
from lpo_jax.sharding import make_mesh, row_cuts
from lpo_jax.train.state import abstract_params
from lpo_jax.train.weights import open_run

PADDING = 0.02
"""By this share two vocabularies may differ that one tokenizer has: their tables are padded to suit the chips of those who trained them."""

SHARE = 0.9
"""Of a chip's memory: what weights and pages may take of it where a mesh is advised, and leave room for what is computed."""


@dataclass(frozen=True)
class ServePlan:
    """What the compiler said, and what follows. Bytes are those of one device."""

    models: list[str]  # the target, and the one that proposes
    parameters: list[int]
    topology: str
    mesh: dict[str, int]
    dtype: str
    rows: int
    longest: int  # tokens of a text, prompt and completion together
    pages: int  # of all parts
    slots: int  # tokens of a page
    block: int  # tokens proposed at a time; 1 with one model
    weights: list[int]  # bytes of each model
    read: list[int]  # of these, what a token's pass reads: without a table that is only looked up
    cached: list[int]  # bytes of each model's pages
    state: int  # bytes of what else is known of the rows
    temporaries: int | None  # while prompts are read or rows extended, whichever takes more; None: it doesn't fit
    program: int
    sent: int  # bytes to other devices in a step
    verdict: str  # empty where it fits
    notes: list[str]
    seconds: float  # that compiling took
    versions: dict[str, str]

    @property
    def chip(self) -> Chip:
        return chip_in(self.topology)

    @property
    def fits(self) -> bool:
        return not self.verdict

    @property
    def used(self) -> int:
        """As far as it is known."""
        return sum(self.weights) + sum(self.cached) + self.state + (self.temporaries or 0) + self.program

    @property
    def parts(self) -> int:
        """Into how many the mesh cuts the rows."""
        return row_cuts(self.mesh)

    @property
    def pages_of_text(self) -> int:
        """M, of the longest one."""
        return -(-self.longest // self.slots)

    @property
    def more_rows(self) -> int:
        """How many rows more the memory that is left would hold the longest texts of."""
        of_row = sum(self.cached) / self.pages * self.parts * (self.pages_of_text + 1)  # as many as `tables.pages_of` gives a row
        return max(0, int((self.chip.hbm - self.used) / of_row)) * self.parts if self.fits else 0

    def step(self, full: bool) -> dict[str, float]:
        """Seconds that a step takes at least, by what limits it.

        Args:
          full: every text is as long as it may be; else all are short.
        """
        passes = [1, self.block][: len(self.models)]  # over a model's weights and pages
        filled = full * min(1.0, self.rows * self.pages_of_text / self.pages)  # of the pages
        read = sum(n * (weights + filled * pages) for n, weights, pages in zip(passes, self.read, self.cached, strict=True))
        # Two operations a weight and token: of a device the weights that it reads, and the rows of its part.
        work = 2 * sum(self.read) / jnp.dtype(self.dtype).itemsize * self.rows / self.parts * self.block
        return {"compute": work / self.chip.flops, "memory": read / self.chip.hbm_rate, "network": self.sent / self.chip.sent_rate}

    def tokens_per_s(self, full: bool) -> tuple[float, float]:
        """At most so many, of all rows: where the first proposal is always refused, and where all are taken."""
        seconds = max(self.step(full).values())
        return self.rows / seconds, self.rows * self.block / seconds

    def facts(self) -> Json:
        """All of it as JSON has it."""
        derived = {"fits": self.fits, "used": self.used, "hbm": int(self.chip.hbm), "more_rows": self.more_rows}
        steps = {name: self.step(full) | {"tokens_per_s": self.tokens_per_s(full)} for name, full in (("short", False), ("full", True))}
        return dataclasses.asdict(self) | derived | {"step_seconds": steps if self.fits else None}


def make(models: Models, topology: str, longest: int) -> ServePlan:
    """Compile what `lpo serve` would run of these models; a minute or more.

    Args:
      models: their names as `shape_of` takes them; `mesh` is the slice's.
      longest: tokens of a text where nothing is said, or what the models were made for, if that is less.

    Raises:
      ConfigError: no compiler, a shape can't be found, or mesh, rows and lengths don't go together.
    """
    begin, chip, dtype = time.perf_counter(), chip_in(topology, "--serve"), models.dtype or "bfloat16"
    flags = {"--model": models.model, **({"--security": models.security} if models.security else {})}
    names = list(flags.values())
    each = [Model(shape_of(flag, name), dtype, dtype) for flag, name in flags.items()]
    vocabs = _vocabularies(flags, each)
    mesh = make_mesh(dataclasses.replace(models.mesh, topology=topology), topology_devices(topology, "--serve"))
    limit = min(model.config.max_positions for model in each)
    longest = min(longest, limit) if models.max_len_tokens is None else models.max_len_tokens
    parts, rule = row_cuts(mesh.shape), CoDecoding() if models.security else None
    rows, block = models.rows or ROWS_PER_CUT * parts, (models.block or max(BLOCKS)) if rule else 1
    for name, model in zip(names, each, strict=True):
        check_model(LoadedModel(model, {}, mesh), name, 1, rows, longest, f"--max-len-tokens is {longest}")
    slots = page_slots(PAGE, longest)
    pages = pages_of(each, rows, parts, slots, longest, models.cache_gib)
    temporaries, program, sent, verdict = None, 0, 0, ""
    with captured_stderr(f"compile for {topology}") as printed:
        engine = Engine(each, mesh, rule, min(vocabs), (0,), rows, longest, pages, slots)
        params, state = tuple(abstract_params(model, mesh) for model in each), engine.abstract_state()
        weights, cached = [bytes_of(tree) for tree in params], [bytes_of(cache) for cache in state.caches]
        if (held := sum(weights) + bytes_of(state)) > chip.hbm:
            verdict = f"weights and pages take {in_words(held)}"
        else:
            try:
                temporaries, program, sent = _compile(engine, params, block)
            except jax.errors.JaxRuntimeError as error:
                verdict = abstract.verdict(error)
    notes = list(dict.fromkeys(re.findall(r"dimension '.*: replicated", printed.getvalue())))
    if len(set(vocabs)) > 1:
        notes.append(f"vocabularies of {' and '.join(f'{size:,}' for size in vocabs)} entries: they must be one tokenizer's all the same")
    if verdict and (advice := _advice(each, models.mesh, topology)):
        notes.append(advice)
    return ServePlan(
        models=names,
        parameters=[sum(x.size for x in jax.tree.leaves(model.shapes())) for model in each],
        topology=topology,
        mesh=dict(mesh.shape),
        dtype=dtype,
        rows=rows,
        longest=longest,
        pages=pages,
        slots=slots,
        block=block,
        weights=weights,
        read=[mesh.shape["fsdp"] * bytes_of(_multiplied(tree, model)) for tree, model in zip(params, each, strict=True)],
        cached=cached,
        state=bytes_of(state) - sum(cached),
        temporaries=temporaries,
        program=program,
        sent=sent,
        verdict=verdict,
        notes=notes,
        seconds=round(time.perf_counter() - begin, 1),
        versions={name: metadata.version(name) for name in ("jax", "jaxlib", "libtpu")},
    )


def shape_of(flag: str, name: str) -> ModelConfig:
    """The shape of a model, without its weights: of a config.json, a run's config, a run_dir, a Hugging Face directory or hub id.

    Args:
      flag: which names it, for errors.

    Raises:
      ConfigError: it is none of these, or can't be read.
    """
    if name.endswith(".json"):
        source = ModelSource(path=name, shape=name)
    elif name.endswith((".yaml", ".yml")):
        source = load(name).model
    else:
        run = open_run(name)
        source = ModelSource(path=name) if run is None else run.model
    remedy = "give a copy of its config.json, a run's config, a run_dir, a Hugging Face directory or a hub id"
    return hf.planned_config(source, f"{flag} {name}", remedy)


def _vocabularies(flags: Mapping[str, str], each: Sequence[Model]) -> list[int]:
    """Their sizes.

    Raises:
      ConfigError: they can't be one tokenizer's, and such models aren't decoded token by token together.
    """
    sizes = [model.config.vocab_size for model in each]
    if min(sizes) < (1 - PADDING) * max(sizes):
        told = ", ".join(f"{flag} {name} has {size:,}" for (flag, name), size in zip(flags.items(), sizes, strict=True))
        raise ConfigError(
            f"no tokenizer has both vocabularies ({told} entries): give models of one tokenizer; `lpo serve --preset crosec` is for such "
            "that share none, and isn't planned"
        )
    return sizes


def _compile(engine: Engine, params: Sequence[Params], block: int) -> tuple[int, int, int]:
    """Bytes of temporaries, of the programs, and of what a step sends.

    Raises:
      jax.errors.JaxRuntimeError: it doesn't fit.
    """

    def whole(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    mesh, state = engine.mesh, engine.abstract_state()
    parts, of_row = row_cuts(mesh.shape), -(-engine.longest // engine.slots)
    chunks = Chunks(whole(parts, engine.slots), whole(parts), whole(parts, of_row), whole(parts))  # type: ignore[arg-type]
    with jax.set_mesh(mesh):
        reading = engine.prefill.trace(params, None, state.caches, chunks)  # type: ignore[attr-defined]
        extending = engine.extend.trace(params, None, state, whole(engine.rows, of_row), whole(), block=block)  # type: ignore[attr-defined]
    found, sent = [], 0
    for traced in (reading, extending):
        with tempfile.TemporaryDirectory() as dump:
            stats = abstract.compile_step(traced, mesh, dump).memory_analysis()
            assert stats is not None
            found.append((stats.temp_size_in_bytes, stats.generated_code_size_in_bytes))
            # The loop over steps has no end that the compiler knows, so its body counts once: a step.
            sent = sum(hlo.traffic(abstract.dumped(dump, traced.fun_name, "after_optimizations"), mesh.size).sent.values())
    return max(temporaries for temporaries, _ in found), sum(code for _, code in found), sent


def _multiplied(tree: Params, model: Model) -> Params:
    """The parameters that every token meets."""
    return tree if model.config.tied_head else {name: x for name, x in tree.items() if name != "embed"}


def _advice(each: Sequence[Model], asked: MeshConfig, topology: str) -> str:
    """The smallest tensor axis with which weights and a page for each row leave room."""
    devices, hbm = topology_devices(topology), chip_in(topology).hbm
    for tensor in (2**power for power in range(len(devices).bit_length())):
        if any(model.config.n_heads % tensor for model in each) or tensor <= asked.tensor:
            continue
        try:
            mesh = make_mesh(MeshConfig(-1, 1, tensor, 1, topology), devices)
        except ConfigError:  # the slice's axes don't give it
            continue
        with captured_stderr():
            held = sum(bytes_of(abstract_params(model, mesh)) for model in each)
        if held < SHARE * hbm:
            return f"cut the weights over more devices: with --tensor {tensor} they take {in_words(held)} of each"
    return ""


def describe(plan: ServePlan) -> str:
    """What `lpo plan --serve` prints."""
    names = [f"{name} ({count / 1e9:.3g}B)" for name, count in zip(plan.models, plan.parameters, strict=True)]
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    lines = [f"{', with the proposals of '.join(names)}, on {plan.topology}, {mesh}, {plan.dtype}", ""]
    hbm = in_words(plan.chip.hbm)
    lines.append(f"fits: {in_words(plan.used)} of {hbm} on each device" if plan.fits else f"doesn't fit {hbm}: {plan.verdict}")
    kinds = [(f"weights of {name}", size) for name, size in zip(plan.models, plan.weights, strict=True)]
    kinds += [(f"pages of {name}", size) for name, size in zip(plan.models, plan.cached, strict=True)] + [("rows", plan.state)]
    if plan.temporaries is not None:
        kinds += [("temporaries", plan.temporaries), ("programs", plan.program)]
    lines += [f"{in_words(size):>14}  {kind}" for kind, size in kinds]
    each = f"{plan.rows // plan.parts} in each of {plan.parts} parts" if plan.parts > 1 else "all on the same devices"
    texts = f"texts of up to {plan.longest:,} tokens, prompt and completion together"
    lines += [
        "",
        f"rows: {plan.rows}, {each}; {texts}",
        f"pages: {plan.pages:,} of {plan.slots} tokens, {plan.pages * plan.slots:,} tokens at once",
    ]
    if plan.fits:
        lines += [
            f"room: for {plan.more_rows} rows more with such texts (--rows {plan.rows + plan.more_rows}), if temporaries stay as they are"
        ]
        lines += ["", *(_speed(plan, full) for full in (False, True))]
        lines.append(
            "bounds: no step is faster than its products, what it reads, or what it sends, each at the chip's peak; no TPU has run it yet"
        )
    lines += [f"note: {note}" for note in plan.notes]
    versions = ", ".join(f"{name} {version}" for name, version in plan.versions.items())
    return "\n".join([*lines, "", f"compiled in {plan.seconds:.0f} s by {versions}"])


def _speed(plan: ServePlan, full: bool) -> str:
    """A step's bound, and the tokens that follow."""
    times, (least, most) = plan.step(full), plan.tokens_per_s(full)
    slowest = max(times, key=lambda name: times[name])
    limits = ", ".join(f"{name} {1e3 * seconds:.3g}" for name, seconds in times.items())
    what = f"a block of {plan.block} proposals" if plan.block > 1 else "a step"
    rate = f"{least:,.0f}" if plan.block == 1 else f"{least:,.0f} (each first proposal refused) to {most:,.0f} (all taken)"
    texts = "with texts as long as may be" if full else "with short texts"
    return (
        f"{texts}: {what} takes at least {1e3 * times[slowest]:.3g} ms ({limits} ms), so at most {rate} tokens a second, all rows together"
    )
