"""A campaign as configs/reproduce/ declares it, and the pieces that it comes to.

`systems.yaml` says what is compared, and which claims are asked about; SIZE.yaml how large all of it is. A piece is work of at most `piece_minutes`
by the product's own commands: a training, or one model's samples on one benchmark. Its key is a hash of all that it is made of, so that a changed
declaration makes it open again, and every piece behind it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from foundation.errors import ConfigError
from foundation.files import Json, read_text
from foundation.settings import Count, NonEmpty, Positive, PositiveNumber, Settings, Share
from lpo_jax.config.load import Loader
from reproduce.results import Results

CONFIGS = Path(__file__).parents[1] / "configs" / "reproduce"
SIZES = ("smoke", "small", "full")
PARTS = ("train", "dev", "test")
FORMS = ("", "_plain")
"""Rows as they are, and without their reasoning."""
_FILES = [f"{part}{form}.jsonl" for part in PARTS for form in FORMS]


@dataclass(frozen=True)
class System(Settings):
    """A row of the page: the model as it comes (no stage), or after a stage that begins where another system's has ended."""

    about: NonEmpty
    stage: Json | None = None
    """of `lpo train`: objective and, where they differ from the size's, optimizer and length"""
    shards: str = "pairs"
    """the shard set that it is trained on, and, with _plain, evaluated on"""
    after: str | None = None
    asked: tuple[str, ...] = ()
    """flags of `lpo-eval`"""
    like: str | None = None
    """a system whose chosen settings it shares; else it has tuning runs of its own"""
    model: Literal["model", "large"] = "model"
    """who writes; only the first is trained"""
    security: str | None = None
    """the system, trained here, that proposes the tokens of one that isn't (co-decoding)"""


@dataclass(frozen=True)
class Benchmark(Settings):
    """A run of `lpo-eval run`: its data, and its flags."""

    name: NonEmpty
    data: NonEmpty
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Phase(Settings):
    """Systems, one after another: each is trained, tuned, and judged on these benchmarks."""

    systems: tuple[str, ...]
    benchmarks: tuple[str, ...] = ()
    seeds: tuple[Positive, ...] = (1,)


@dataclass(frozen=True)
class Split(Settings):
    """How rows are cut into train, development and test: groups of alike rows are never cut."""

    near: PositiveNumber
    """Jaccard similarity from which rows are alike, as in `lpo-data build --near`"""
    seed: Count
    test: Share
    """share of the groups of each CWE"""
    dev: Share
    """share of those that are left"""
    least: Positive
    """rows that each part must have"""


@dataclass(frozen=True)
class Claim(Settings):
    """What a paper says, and the rule that decides it. `want`: "above" and "below": the paired difference's interval lies above or below 0;
    "at least": the value, or the difference where two systems are compared, is `bound` or more."""

    text: NonEmpty
    source: NonEmpty
    systems: tuple[str, ...] = ()
    """one, or the second minus the first"""
    benchmark: str = "test"
    measure: str = "func-sec@1"
    want: Literal["above", "below", "at least"] = "above"
    bound: float = 0.0
    open: str = ""
    """what must be declared before it can be asked"""
    untestable: str = ""
    """why it can't be tested here"""


@dataclass(frozen=True)
class Campaign(Settings):
    """All of it. `systems`, `comparisons` and `claims` stand in systems.yaml, the rest in SIZE.yaml."""

    size: str
    systems: dict[str, System]
    comparisons: tuple[tuple[str, str], ...]
    claims: tuple[Claim, ...]
    run: Json
    """of every training: a config of `lpo train` without run_dir, data and stages"""
    stage: Json
    """of every stage: its optimizer and length"""
    split: Split
    build: tuple[str, ...]
    """flags of every `lpo-data build`"""
    shards: dict[str, tuple[str, ...]]
    """shard set -> arguments of `lpo-data build`"""
    benchmarks: dict[str, Benchmark]
    phases: dict[str, Phase]
    tune: dict[str, tuple[Json, ...]] = field(default_factory=dict)
    """system -> what its tuning runs change of the stage; of one without a stage `asked`, flags of `lpo-eval`"""
    piece_minutes: Annotated[float, Field(gt=0)] = 40
    minutes: dict[str, float] = field(default_factory=dict)
    """what a piece is expected to take, by its system (of a training), its kind or its benchmark, until one of its kind has been done"""
    new: Json | None = None
    """a model of its own, where none is given: `build`, flags of `lpo-data build`, and `run`, a config of `lpo train`"""
    pairs: str | None = None
    """where none are given"""
    recipe: str = ""
    """what runs this size, where this machine can't"""


@dataclass(frozen=True)
class Piece:
    """{model}, {large}, {pairs}, {work} and {benchmarks} in commands and config stand for places."""

    name: str
    kind: Literal["model", "shards", "train", "evaluate"]
    about: str
    commands: tuple[tuple[str, ...], ...]
    outputs: tuple[str, ...]
    """directories that it makes"""
    needs: tuple[str, ...] = ()
    config: Json | None = None
    """of its `lpo train`; it lies at {work}/configs/NAME.yaml"""
    system: str = ""
    seed: int = 1
    phase: str = ""
    waits: str = ""
    """what must be known before it can be declared whole"""
    benchmark: str = ""
    variant: int = 0
    key: str = ""

    @property
    def reads_large(self) -> bool:
        return "{large}" in json.dumps([self.commands, self.config])


def load(size: str, configs: Path = CONFIGS) -> Campaign:
    """The campaign of a size.

    Raises:
      ConfigError: a file is missing or damaged, or names what isn't there; the file and the key are named.
    """
    if not (configs / f"{size}.yaml").is_file():
        raise ConfigError(f"there is no size {size!r}; choose from {', '.join(SIZES)}")
    raw: Json = {"size": size}
    for name in ("systems", size):
        file = configs / f"{name}.yaml"
        try:
            raw |= yaml.load(read_text(file), Loader)  # noqa: S506 (a safe loader that reads 1e-5 as a number)
        except (yaml.YAMLError, TypeError) as error:
            raise ConfigError(f"{file}: not valid YAML ({' '.join(str(error).split())[:200]})") from None
    try:
        campaign = TypeAdapter(Campaign).validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ConfigError(f"{configs}/{{systems,{size}}}.yaml: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    _check(campaign, configs / f"{size}.yaml")
    return campaign


def _check(campaign: Campaign, file: Path) -> None:
    systems = campaign.systems
    named = [(f"systems.{name}", other) for name, s in systems.items() for other in (s.after, s.like, s.security) if other]
    named += [(f"phases.{name}", other) for name, phase in campaign.phases.items() for other in phase.systems]
    named += [("tune", name) for name in campaign.tune] + [("comparisons", name) for two in campaign.comparisons for name in two]
    for where, name in named:
        if name not in systems:
            raise ConfigError(f"{file}: {where}: there is no system {name!r}; choose from {', '.join(systems)}")
    for name, system in systems.items():
        if system.security and (system.stage is not None or systems[system.security].stage is None):
            raise ConfigError(f"{file}: systems.{name}.security: {system.security} must be trained, and {name} not")
    for phase in campaign.phases.values():
        for name in phase.benchmarks:
            if name not in campaign.benchmarks:
                raise ConfigError(f"{file}: phases: there is no benchmark {name!r}; choose from {', '.join(campaign.benchmarks)}")
    if "dev" not in campaign.benchmarks and campaign.tune:
        raise ConfigError(f"{file}: benchmarks: tuning chooses by `dev`, which isn't there")


def merged(base: Any, more: Any) -> Any:
    """Nested mappings as one; `more` wins."""
    if not isinstance(base, Mapping) or not isinstance(more, Mapping):
        return more
    return {**base, **{key: merged(base.get(key), value) for key, value in more.items()}}


def expand(campaign: Campaign, results: Results) -> list[Piece]:
    """The pieces in their order; those that wait for a choice on the development part say so. The choices follow from `results`."""
    found: dict[str, Piece] = {}
    facts = results.facts()
    for piece in _pieces(campaign, results, found):
        if piece.name not in found:
            about = facts | results.facts("larger") if piece.reads_large else facts
            made = [about, piece.kind, piece.commands, piece.config, [found[name].key for name in piece.needs]]
            found[piece.name] = replace(piece, key=hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16])
    return list(found.values())


def _pieces(campaign: Campaign, results: Results, found: Mapping[str, Piece]) -> Iterator[Piece]:
    if campaign.new is not None:
        yield _model(campaign.new)
    needs = ("model",) if campaign.new is not None else ()
    for name, args in campaign.shards.items():
        inputs = [f"{{work}}/data/{arg}" if arg in _FILES else arg for arg in args]
        command = ("lpo-data", "build", *inputs, "--tokenizer", "{model}", *campaign.build, "--out", f"{{work}}/shards/{name}")
        yield Piece(f"shards-{name}", "shards", f"shard set {name}", (command,), (command[-1],), needs)
    for phase_name, phase in campaign.phases.items():
        for seed in phase.seeds:
            for name in phase.systems:
                for piece in _of_system(campaign, name, seed, phase, results, found, needs):
                    yield replace(piece, phase=phase_name)


def _model(new: Json) -> Piece:
    """A model of its own: for runs that show that everything works."""
    build = ("lpo-data", "build", "{work}/data/train.jsonl", *new["build"], "--out", "{work}/shards/model")
    config = merged(new["run"], {"run_dir": "{work}/runs/model", "data": {"path": "{work}/shards/model"}})
    commands = (build, ("lpo", "train", "{work}/configs/model.yaml"), ("lpo", "export", "{work}/runs/model", "{work}/model"))
    return Piece(
        "model", "model", "a small model, trained from scratch", commands, (build[-1], "{work}/runs/model", "{work}/model"), config=config
    )


def _tuned(campaign: Campaign, name: str) -> str:
    """The system whose tuning runs decide a system's settings."""
    system = campaign.systems[name]
    return _tuned(campaign, system.like) if system.like else name


def chosen(campaign: Campaign, name: str, results: Results, found: Mapping[str, Piece]) -> int | None:
    """Which of a system's tuning runs the development part prefers: the highest joint share, then the highest share that works, then the first.
    None: not all are judged yet."""
    name = _tuned(campaign, name)
    variants = range(1, len(campaign.tune.get(name, ({},))) + 1)
    if len(variants) == 1:
        return 1
    judged = [found.get(f"dev-{name}.{n}") for n in variants]
    if not all(piece is not None and not piece.waits and results.done(piece.name, piece.key) for piece in judged):
        return None
    scores = {n: results.shares(f"dev-{name}.{n}") for n in variants}
    return max(variants, key=lambda n: (*scores[n], -n))


def _undecided(campaign: Campaign, name: str, best: int | None) -> str:
    """What a piece waits for that takes a system's `chosen` run; "": it is known."""
    return "" if best else f"the choice among {_tuned(campaign, name)}'s tuning runs"


def _of_system(
    campaign: Campaign, name: str, seed: int, phase: Phase, results: Results, found: Mapping[str, Piece], needs: tuple[str, ...]
) -> Iterator[Piece]:
    system, marked = campaign.systems[name], "" if seed == 1 else f"-seed{seed}"
    benchmarks = list(phase.benchmarks)
    if system.stage is None:
        yield from _of_untrained(campaign, name, benchmarks, results, found, needs)
        return
    tuning = list(campaign.tune.get(_tuned(campaign, name), ({},)))
    every = range(1, len(tuning) + 1) if seed == 1 and system.like is None else ()
    for n in every:
        train = _training(campaign, name, n, seed, tuning[n - 1], results, found)
        yield train
        if "dev" in benchmarks or len(tuning) > 1:
            yield replace(_evaluation(campaign, name, "dev", f"dev-{name}.{n}", f"{{work}}/runs/{name}.{n}", (train.name,)), waits=train.waits, variant=n)  # fmt: skip
    best = chosen(campaign, name, results, found)
    run = f"{name}.{best}{marked}" if best else f"{name}{marked}"
    waits = _undecided(campaign, name, best)
    if not every:
        train = replace(_training(campaign, name, best or 1, seed, tuning[(best or 1) - 1], results, found), name=f"train-{run}")
        train = replace(train, waits=train.waits or waits)
        yield train
    judged = [benchmark for benchmark in benchmarks if benchmark != "dev" or not every]
    for benchmark in judged:
        piece = _evaluation(
            campaign, name, benchmark, f"{benchmark}-{name}{marked}", f"{{work}}/runs/{run}", (f"train-{run}",) if best else ()
        )
        yield replace(piece, waits=waits or train.waits, seed=seed, variant=best or 0)


def _of_untrained(
    campaign: Campaign, name: str, benchmarks: list[str], results: Results, found: Mapping[str, Piece], needs: tuple[str, ...]
) -> Iterator[Piece]:
    """A model as it comes, or two that decode together: the second one's adapter proposes."""
    system, waits, flags = campaign.systems[name], "", tuple[str, ...]()
    if system.security is not None:
        proposer = chosen(campaign, system.security, results, found)
        waits = _undecided(campaign, system.security, proposer)
        run = f"{system.security}.{proposer or 1}"
        flags = "--security", "{model}", "--security-adapter", f"{{work}}/adapters/{run}"
        needs = (*needs, f"train-{run}") if proposer else needs
    tuning = campaign.tune.get(_tuned(campaign, name), ({},))
    asked = [(*flags, *tuned.get("asked", ())) for tuned in tuning]
    writer, tuned = f"{{{system.model}}}", len(tuning) > 1 and system.like is None
    for n in range(1, len(tuning) + 1) if tuned else ():
        piece = _evaluation(campaign, name, "dev", f"dev-{name}.{n}", writer, needs, asked[n - 1])
        yield replace(piece, waits=waits, variant=n)
    best = chosen(campaign, name, results, found)
    waits = waits or _undecided(campaign, name, best)
    for benchmark in benchmarks:
        if benchmark != "dev" or not tuned:
            yield replace(_evaluation(campaign, name, benchmark, f"{benchmark}-{name}", writer, needs, asked[(best or 1) - 1]), waits=waits)


def _training(campaign: Campaign, name: str, variant: int, seed: int, tuned: Json, results: Results, found: Mapping[str, Piece]) -> Piece:
    system, marked = campaign.systems[name], "" if seed == 1 else f"-seed{seed}"
    assert system.stage is not None
    run, plain = f"{name}.{variant}{marked}", "_plain" if system.shards.endswith("_plain") else ""
    heldout = f"whole{plain}"
    sets = [{"path": f"{{work}}/shards/{system.shards}"}] if system.shards != heldout else None
    stage = merged(merged(merged(campaign.stage, system.stage), tuned), {"data": sets} if sets else {})
    needs, waits, begin = [f"shards-{each}" for each in dict.fromkeys((heldout, system.shards))], "", {"path": "{model}"}
    if system.after is not None:
        before = chosen(campaign, system.after, results, found)
        waits = "" if before else f"the choice among {system.after}'s tuning runs"
        parent = f"{system.after}.{before or 1}{marked}"
        begin["adapter"] = f"{{work}}/adapters/{parent}"
        needs += [f"train-{parent}"] if before else []
    config = merged(campaign.run, {
        "run_dir": f"{{work}}/runs/{run}", "seed": seed, "data": {"path": f"{{work}}/shards/{heldout}"}, "model": begin,
        "stages": {name.partition(".")[0]: stage},
    })  # fmt: skip
    commands = (
        ("lpo", "train", f"{{work}}/configs/train-{run}.yaml"),
        ("lpo", "export", f"{{work}}/runs/{run}", f"{{work}}/adapters/{run}"),
    )
    outputs = config["run_dir"], commands[1][-1]
    return Piece(f"train-{run}", "train", system.about, commands, outputs, tuple(needs), config, name, seed, waits=waits, variant=variant)


def _evaluation(
    campaign: Campaign, name: str, benchmark: str, piece: str, completions: str, needs: tuple[str, ...], more: tuple[str, ...] = ()
) -> Piece:
    what, asked = campaign.benchmarks[benchmark], (*campaign.systems[name].asked, *more)
    command = ("lpo-eval", "run", "--benchmark", what.name, "--data", what.data, "--completions", completions, *what.flags, *asked)
    command = (*command, "-o", f"{{work}}/evals/{piece}")
    return Piece(piece, "evaluate", f"{name} on {benchmark}", (command,), (command[-1],), needs, system=name, benchmark=benchmark)
