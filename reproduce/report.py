"""The page, and docs/results.md: both made from what lies under docs/results/, by anybody, without the runs."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from evaluation import audit, compare
from evaluation.measures import Estimate
from evaluation.runs import Run
from foundation.files import Json, read_json, read_object, write_text
from foundation.pages import environment
from reproduce import claims
from reproduce.campaign import CONFIGS, PARTS, SIZES, Campaign, Piece, chosen, expand, load
from reproduce.results import Results, accuracies

HERE = Path(__file__).parent
OPEN = "open"
JOINT = ("func-sec@1", "pass@1", "secure")
HELDOUT = {"pair_accuracy": 100, "answer_accuracy": 100, "answer_accuracy_sum": 100, "margin": 1, "changed_nll": 1, "unchanged_nll": 1}
"""Teacher-forced measures, and what they are multiplied by."""


@dataclass(frozen=True)
class Table:
    title: str
    note: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Page:
    """What one size has found so far."""

    campaign: Campaign
    results: Results
    groups: dict[str, str]

    @cached_property
    def pieces(self) -> list[Piece]:
        return expand(self.campaign, self.results)

    @cached_property
    def by_name(self) -> dict[str, Piece]:
        return {piece.name: piece for piece in self.pieces}

    def done(self, name: str) -> bool:
        piece = self.by_name.get(name)
        return piece is not None and not piece.waits and self.results.done(name, piece.key)

    def best(self, system: str) -> int | None:
        return chosen(self.campaign, system, self.results, self.by_name)

    def find(self, system: str, benchmark: str, seed: int = 1) -> Run | None:
        """A final system's run of a benchmark, beside the base's: what it lost there is marked, and credited nowhere."""
        run = self._evaluation(self._name(system, benchmark, seed))
        base = self._evaluation(f"{benchmark}-base")
        if run is not None and base is not None and run is not base:
            run.gutted = compare.pair(base, run)
        return run

    def _name(self, system: str, benchmark: str, seed: int) -> str:
        if benchmark == "dev" and f"dev-{system}.1" in self.by_name:
            return f"dev-{system}.{self.best(system) or 'chosen'}"
        return f"{benchmark}-{system}{'' if seed == 1 else f'-seed{seed}'}"

    def _evaluation(self, name: str) -> Run | None:
        return self.results.evaluation(name) if self.done(name) else None

    def trained(self, system: str) -> str | None:
        """The name of a system's training, if it is done."""
        name = f"train-{system}.{self.best(system)}"
        return name if self.done(name) else None

    def minutes(self, piece: Piece) -> float:
        """What a piece takes: what it took, else what others of its kind would have taken on a quiet machine, else what the declaration expects."""
        if self.done(piece.name):
            return self.results.record(piece.name)["seconds"] / 60
        alike = [self.results.record(p.name) for p in self.pieces if _kind(p) == _kind(piece) and self.done(p.name)]
        if known := [_quiet(record) for record in alike if "cpu_seconds" in record]:
            return statistics.fmean(known) / 60
        expected = self.campaign.minutes
        return expected.get(piece.system if piece.kind == "train" else "", expected.get(_kind(piece)[0], 0.0))

    def left(self) -> float:
        """Hours that the open pieces will take, about."""
        return sum(self.minutes(piece) for piece in self.pieces if not self.done(piece.name)) / 60

    # --- Tables.

    def tables(self) -> list[Table]:
        return [t for t in (self._claims(), self._code(), self._papers(), self._differences(), self._seeds(), self._heldout(), self._audit(), self._tuning(), self._took()) if t.rows]  # fmt: skip

    def _claims(self) -> Table:
        rows = []
        for claim in self.campaign.claims:
            verdict, numbers = claims.decide(claim, self.find, self.groups)
            rows.append([claim.text, claim.source, verdict, numbers])
        return Table("Claims", "Each is decided by the rule that configs/reproduce/systems.yaml gives it; \"not confirmed\" is no refutation where the interval holds 0.", ["claim", "whose", "verdict", "numbers, %"], rows)  # fmt: skip

    def _code(self) -> Table:
        rows = []
        for system in self._systems():
            cells = [self._cell(system, b, k) for b in ("dev", "test") for k in JOINT if b == "test" or k == "func-sec@1"]
            cells += [
                self._cell(system, b, k)
                for b, k in (("test5", "func-sec@5"), ("humaneval", "pass@1"), ("mbxp", "pass@1"), ("test", "taken"))
            ]
            rows += [[system, *cells]] if {*cells} != {"–"} else []
        note = "Joint: secure and functional on the same sample, by the rows' own tests. Greedy, but for @5. Taken: tokens that the steering model proposed. The test part is scored once for each final system; brackets hold 95 % intervals, drawn over groups of alike tasks."
        return Table("Function and security", note, ["system", "dev joint", "test joint", "test functional", "test secure", "test joint@5", "HumanEval", "MBXP", "taken"], rows)  # fmt: skip

    def _papers(self) -> Table:
        names = [name for name in self.campaign.benchmarks if name not in ("dev", "test", "test5", "humaneval", "mbxp")]
        rows = [[s, *(self._cell(s, b, k) for b in names for k in ("insecure", "secure"))] for s in self._systems() if any(f"{b}-{s}" in self.by_name for b in names)]  # fmt: skip
        head = ["system", *(f"{b}, {word}" for b in names for word in ("insecure", "secure and alive"))]
        return Table("The papers' own benchmarks", "Analyzers alone judge these. The LPO paper reports 19 to 40 % fewer insecure programs.", head, rows if names else [])  # fmt: skip

    def _differences(self) -> Table:
        rows = []
        for first, second in self.campaign.comparisons:
            for benchmark in ("test", "humaneval"):
                a, b = self.find(first, benchmark), self.find(second, benchmark)
                found = claims.differences(a, b, JOINT, self.groups) if a and b else {}
                rows += [
                    [
                        f"{second} minus {first}",
                        benchmark,
                        key,
                        _text(row.difference, "+"),
                        f"{row.higher} up, {row.lower} down",
                        f"{row.p:.3f}" if row.p is not None else "",
                    ]  # fmt: skip
                    for key, row in found.items()
                ]
        return Table("Paired differences", "Points, over the same tasks; up and down count groups of alike tasks, and p is the sign test's over these.", ["systems", "benchmark", "measure", "difference", "groups", "p"], rows)  # fmt: skip

    def _seeds(self) -> Table:
        rows: list[list[str]] = []
        seeds = sorted({piece.seed for piece in self.pieces})
        for system in dict.fromkeys(piece.system for piece in self.pieces if piece.seed > 1):
            runs = [self.find(system, "test", seed) for seed in seeds]
            each = [100 * e.value if run and (e := claims.values(run, ["func-sec@1"], self.groups)["func-sec@1"]) else None for run in runs]
            known = [value for value in each if value is not None]
            spread = f"{statistics.fmean(known):.1f} ± {statistics.stdev(known):.1f}" if len(known) > 1 else OPEN
            rows.append([system, *(OPEN if value is None else f"{value:.1f}" for value in each), spread])
        return Table("Seeds", "Test joint, %, each from an SFT of its own seed; mean and standard deviation.", ["system", *(f"seed {s}" for s in seeds), "spread"], rows)  # fmt: skip

    def _heldout(self) -> Table:
        rows: list[list[str]] = []
        for system in self._systems():
            if self.campaign.systems[system].stage is None:
                continue
            name = self.trained(system)
            found = list(self.results.training(name)["heldout"].items()) if name else []
            for at, evaluation in (found if not rows else found[1:]) or [(OPEN, None)]:
                values = {**evaluation["metrics"], **accuracies(evaluation["pairs"])} if evaluation else {}
                rows.append([f"before {system}" if at == "init" else system, *(f"{HELDOUT[k] * values[k]:.{1 if HELDOUT[k] == 100 else 3}f}" if k in values else OPEN for k in HELDOUT)])  # fmt: skip
        note = "Pairs of the development part, teacher-forced. Accuracy: the secure side is likelier, by its changed tokens' mean, by the whole answers' mean, and by their sums; margin and NLL in nats a token."
        return Table("Held-out pairs", note, ["system", "changed tokens, %", "whole answers, %", "whole answers, summed, %", "margin", "NLL changed", "NLL unchanged"], rows)  # fmt: skip

    def _audit(self) -> Table:
        rows = []
        for system in self._systems():
            if run := self.find(system, "test"):
                counts = audit.of_run(run.samples) | {"gutted": run.gutted}
                rows.append([system, str(counts["samples"]), *("–" if counts.get(k) is None else str(counts[k]) for k in audit.MEANINGS)])
        return Table("Audit of the test part", "Samples of each kind (docs/audit.md); gutted: beside the base's.", ["system", "samples", *audit.MEANINGS], rows)  # fmt: skip

    def _tuning(self) -> Table:
        rows = []
        for system, variants in self.campaign.tune.items():
            for n, tuned in enumerate(variants, 1):
                run = self._evaluation(f"dev-{system}.{n}")
                cells = [_text(e) for e in claims.values(run, JOINT[:2], self.groups).values()] if run else [OPEN, OPEN]
                rows.append([f"{system}.{n}", _flat(tuned), *cells, "chosen" if len(variants) > 1 and self.best(system) == n else ""])
        return Table("Tuning, on the development part", "Every rival gets as many runs; the highest joint share is chosen, then the highest functional one.", ["run", "setting", "dev joint", "dev functional", ""], rows)  # fmt: skip

    def _took(self) -> Table:
        rows = []
        for piece in self.pieces:
            record = self.results.record(piece.name)
            state = (
                "done"
                if self.done(piece.name)
                else "declared otherwise since"
                if record
                else piece.waits and f"waits for {piece.waits}" or OPEN
            )
            again = f"scored {record['times']} times" if piece.benchmark.startswith("test") and record.get("times", 1) > 1 else ""
            took = f"{record['seconds'] / 60:.1f} min, {record['parts']} part{'s'[: record['parts'] != 1]}, {record['cores']} cores" if record else f"about {self.minutes(piece):.0f} min"  # fmt: skip
            rows.append([piece.name, piece.phase, state, took, again])
        return Table(
            "Pieces",
            "Adapters aren't kept: a training's time is what it takes to have one again.",
            ["piece", "phase", "state", "took", ""],
            rows,
        )

    def curves(self) -> list[Json]:
        """The loss of each final system's training, as the points of a line in a box of 300 by 80."""
        found = []
        for system in self._systems():
            name = self.trained(system) if self.campaign.systems[system].stage is not None else None
            losses = [line["loss"] for line in self.results.training(name)["curve"] if "loss" in line] if name else []
            if len(losses) > 1:
                low, high = min(losses), max(losses)
                points = [(300 * i / (len(losses) - 1), 80 - 80 * (x - low) / ((high - low) or 1)) for i, x in enumerate(losses)]
                found.append({"system": system, "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in points), "from": losses[0], "to": losses[-1], "steps": len(losses)})  # fmt: skip
        return found

    def _systems(self) -> list[str]:
        return list(dict.fromkeys(piece.system for piece in self.pieces if piece.system))

    def _cell(self, system: str, benchmark: str, key: str) -> str:
        if self._name(system, benchmark, 1) not in self.by_name | {f"dev-{system}.chosen": None}:
            return "–"
        run = self.find(system, benchmark)
        return OPEN if run is None else _text(claims.values(run, [key], self.groups)[key])


def _quiet(record: Json) -> float:
    """Seconds, or less where other programs had the cores: all of them are taken to be at work four fifths of the time."""
    return min(record["seconds"], 1.25 * record["cpu_seconds"] / record["cores"])


def _kind(piece: Piece) -> tuple[str, str]:
    if piece.kind == "evaluate":
        return piece.benchmark + "-large" * piece.reads_large, ""
    return piece.kind, piece.system


def _text(e: Estimate | None, sign: str = "") -> str:
    return "–" if e is None else f"{100 * e.value:{sign}.1f} [{100 * e.low:{sign}.1f}, {100 * e.high:{sign}.1f}]"


def _flat(value: Json, above: str = "") -> str:
    pairs = (
        _flat(x, f"{above}{k}.")
        if isinstance(x, dict)
        else " ".join(x)
        if isinstance(x, list)
        else f"{above}{k} {x:g}"
        if isinstance(x, float)
        else f"{above}{k} {x}"
        for k, x in value.items()
    )
    return ", ".join(pairs)


def pages(root: Path, configs: Path = CONFIGS) -> list[Page]:
    """One for each size that has results."""
    groups = read_json(root / "split.json")["groups"] if (root / "split.json").is_file() else {}
    return [Page(load(size, configs), Results(root, size), groups) for size in SIZES if (root / size / "subject.json").is_file()]


def write(root: Path, configs: Path = CONFIGS) -> list[Path]:
    """Make `root`/index.html, and `root`.md beside it, anew; returns the two."""
    found = pages(root, configs)
    split = read_object(root / "split.json")
    contents = {
        "sizes": [{"name": p.campaign.size, "facts": p.results.facts() | p.results.facts("larger"), "tables": p.tables(), "curves": p.curves(), "left": p.left(), "done": sum(p.done(x.name) for x in p.pieces), "pieces": len(p.pieces)} for p in found],
        "parts": {part: len(split[part]) for part in PARTS if split} | ({"groups": len(set(split["groups"].values()))} if split else {}),
        "near": split.get("near"),
    }  # fmt: skip
    files = [root / "index.html", root.with_name(f"{root.name}.md")]
    env = environment(HERE)
    env.filters["cells"] = _cells
    for file, name in zip(files, ("results.html.j2", "results.md.j2"), strict=True):
        text = env.get_template(name).render(**contents)
        write_text(file, text if file.suffix == ".html" else "\n".join(line.rstrip() for line in text.splitlines()) + "\n")
    return files


def _cells(row: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
