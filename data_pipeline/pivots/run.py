"""A job of `lpo-data pivots`: pairs -> places -> continuations -> verdicts -> pairs with spans.

Beside OUT lie `.job.json` (what it was made of), `.journal.jsonl` (each answer and each verdict, on disk before anything is made of it) and
`.dropped.tsv`. All of OUT is computed from the journal.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from data_pipeline import formats, masks, pairs, records, template, tokenizer
from data_pipeline.distill.journal import Journal, content_key
from data_pipeline.encode import UnusableError
from data_pipeline.endpoint import address, each
from data_pipeline.pairs import Drops, Pair, Span
from data_pipeline.pivots.estimates import Asking, DroppedError, Estimates, Search
from data_pipeline.pivots.places import SIDES, Side, Track, pivotal, tracks
from data_pipeline.pivots.success import Judges
from foundation.errors import DataError
from foundation.files import Json, claim, hold, write_lines, write_text


@dataclass(frozen=True)
class Cost:
    """What can be searched, and the requests of that: if no token is pivotal, and if one is on each side."""

    pairs: int
    least: int
    likely: int


@dataclass(frozen=True)
class Found:
    """What a search has come to."""

    cost: Cost
    drops: Drops  # the rows that were left out
    pairs: int = 0  # written
    tokens: int = 0  # pivotal ones, in their spans
    requests: int = 0  # of this run


def search(
    inputs: Sequence[str], out: Path, tokenizer_name: str, what: Search, asking: Asking, tools: Sequence[str], tests: Path | None = None,
    *, template_name: str | None = None, system: str = "", limit: int | None = None, jobs: int = 2, dry_run: bool = False,
) -> Found:  # fmt: skip
    """Search pairs for pivotal tokens and write them to `out`, or go on with that.

    Raises:
      UserError: something that was given can't be used, the endpoint doesn't answer, or a judge broke down.
    """
    address(asking.base_url)
    with contextlib.nullcontext() if dry_run else hold(out):
        tok = tokenizer.load(tokenizer_name)
        how, _ = template.load(template_name, tok, system)
        drops = Drops()
        rows = [row for source in inputs for row in pairs.read_rows(source, drops)]
        judges = Judges([pair for _, pair in rows], tools, tests, jobs)
        rows = rows[:limit]
        job = _Job(what, asking, judges, tok, how, drops)
        if dry_run:
            return Found(job.plan(rows, {})[1], drops)
        facts = {"inputs": [records.facts(source) for source in inputs], "tokenizer": tok.sha256, "template": asdict(how)}
        _claim(out, facts | judges.facts | asdict(what))
        with contextlib.closing(Journal(beside(out, "journal.jsonl"))) as journal:
            found, cost = job.plan(rows, journal.answers, journal.add)
            kept, requests = asyncio.run(job.run(found, journal))
        if limit is not None and out.exists() and len(kept) < len(out.read_text("utf-8").splitlines()):
            raise DataError(f"{out}: holds pairs that --limit {limit} leaves out; give a larger --limit, or choose another --out")
        write_text(beside(out, "dropped.tsv"), "".join(f"{row}\t{' '.join(reason.split())}\n" for row, reason in drops.rows))
        write_lines(out, kept)
    spans = sum(len(row[f"{side}_spans"]) for row in kept for side in what.sides)
    return Found(cost, drops, len(kept), spans, requests)


def beside(out: Path, name: str) -> Path:
    """A file that belongs to `out`."""
    return out.with_name(f"{out.name}.{name}")


def _claim(out: Path, facts: Json) -> None:
    file = beside(out, "job.json")

    def refuse(other: list[str]) -> DataError:
        return DataError(f"{out}: was begun with another {', '.join(other)} (see {file}); repeat them, or choose another --out")

    if out.exists() and not file.exists():
        raise DataError(f"{out}: exists and isn't of `lpo-data pivots` ({file.name} is missing); choose another --out, or move it away")
    claim(file, facts, refuse)


_AT_ONCE = 64
"""Pairs under way: enough that judges, which take seconds to start, get many programs at once; how many requests are is another matter."""


class _Job:
    def __init__(self, what: Search, asking: Asking, judges: Judges, tok: tokenizer.Tokenizer, how: template.Template, drops: Drops):
        self.what, self.asking, self.judges, self.tok, self.how, self.drops = what, asking, judges, tok, how, drops

    def plan(
        self, rows: Sequence[tuple[Json, Pair]], known: Mapping[str, Json], keep: Callable[[str, Json, Json], None] | None = None
    ) -> tuple[list[tuple[Json, Pair, list[Track]]], Cost]:
        """The rows to search, each with its sides, and what that costs. Rows that nobody can judge are dropped.

        Args:
          known: earlier answers, those about rows among them.
          keep: told (key, request, answer) of what was found out about a row.
        """
        keys = [content_key({"sides": [pair.id, pair.cwe, pair.chosen, pair.rejected]}) for _, pair in rows]
        new = {key: pair for key, (_, pair) in zip(keys, rows, strict=True) if key not in known}
        reasons = {key: str(known[key]["unfit"]) for key in keys if key in known}
        for key, reason in zip(new, self.judges.unfit([*new.values()]), strict=True):
            reasons[key] = reason
            if keep:
                keep(key, {"row": new[key].id}, {"unfit": reason})
        found = []
        for key, (row, pair) in zip(keys, rows, strict=True):
            try:
                if reasons[key]:
                    raise DroppedError(reasons[key])
                found.append((row, pair, tracks(pair, self.tok, self.how, self.what.sides)))
            except (DroppedError, UnusableError) as error:
                self.drops.add(pair.id, str(error))
        lengths = [len(track.cuts) - 1 for *_, several in found for track in several]
        return found, Cost(len(found), 2 * len(lengths), sum(2 + math.ceil(math.log2(length)) for length in lengths))

    async def run(self, found: Sequence[tuple[Json, Pair, list[Track]]], journal: Journal) -> tuple[list[Json], int]:
        """The rows with their pivotal tokens, and how many requests that took."""
        kept: dict[int, Json] = {}
        reasons: dict[int, str] = {}
        with (
            tqdm(total=len(found), desc="search", unit=" pairs", dynamic_ncols=True) as bar,
            tqdm(desc="ask", unit=" requests", dynamic_ncols=True) as asked,
        ):
            async with contextlib.aclosing(Estimates(self.what, self.asking, self.judges, journal, asked.update)) as estimates:

                async def one(number: int) -> None:
                    row, pair, several = found[number]
                    try:
                        known = {track.side: await estimates.search(track) for track in several}
                        kept[number] = self._row(row, pair, several, known)
                    except DroppedError as error:
                        reasons[number] = str(error)
                    bar.update()

                await each(range(len(found)), one, _AT_ONCE)
        for number in sorted(reasons):
            self.drops.add(found[number][1].id, reasons[number])
        return [kept[number] for number in sorted(kept)], int(asked.n)

    def _row(self, row: Json, pair: Pair, several: Sequence[Track], known: Mapping[Side, Mapping[int, float]]) -> Json:
        recorded = pair.rejected_spans, pair.chosen_spans
        rejected, chosen = masks.changed_spans(pair.rejected, pair.chosen) if None in recorded else recorded
        spans: dict[Side, Sequence[Span]] = {"chosen": chosen or (), "rejected": rejected or ()}
        spans |= {side: [] for side in self.what.sides}
        measured: Json = {}
        for track in several:
            p, cuts = known[track.side], track.cuts
            steps = [(a, p[a], p[a + 1]) for a in pivotal(p, self.what.threshold)]
            measured[track.side] = {
                "prefixes": [{"characters": cuts[place][1], "p": p[place]} for place in sorted(p)],
                "tokens": [
                    {"characters": track.span(a), "text": track.text[slice(*track.span(a))], "before": p0, "after": p1}
                    for a, p0, p1 in steps
                ],
            }
            spans[track.side] = [track.span(a) for a, p0, p1 in steps if (p1 > p0) == (track.side == "chosen")]
        if not any(spans[side] for side in self.what.sides):
            seen = (f"{track.side} {known[track.side][0]:.2f} to {known[track.side][len(track.cuts) - 1]:.2f}" for track in several)
            raise DroppedError(f"no pivotal token (p: {', '.join(seen)})")
        form = formats.of(row)
        facts = {name: value for name, value in row.items() if name in form.more} if form is not None and form.name == "our own" else {}
        found = {f"{side}_spans": spans[side] for side in SIDES} | {"pivots": {"samples": self.what.samples} | measured}
        return facts | pairs.as_row(pair) | found
