"""`lpo-data push`: pairs as a data set of the hub."""

import re
import shutil
import tempfile
from pathlib import Path

import yaml

from data_pipeline import pairs
from data_pipeline.pairs import Drops
from foundation.errors import DataError
from foundation.files import write_text
from foundation.hub import check_id
from foundation.hub import push as upload

_FILES = "*.jsonl", "*.json", "*.csv", "*.tsv", "*.parquet", "*.gz"


def push(source: Path, repo_id: str, license: str | None = None, private: bool = False) -> tuple[str, int]:
    """Upload a job of `lpo-data distill`, or a directory or a file of pairs, with its card; returns the address and the number of pairs.

    Every row is read first: what isn't pairs isn't uploaded. A directory without a README.md gets one; `license` is written into it, and into one
    that names none.

    Raises:
      DataError: the source holds no pairs, a file of it can't be read, a row is no pair, or the hub doesn't take it.
    """
    check_id(repo_id)
    directory = source / "data" if (source / "job.json").is_file() else source
    files = [source] if source.is_file() else sorted({file for pattern in _FILES for file in directory.glob(pattern) if file.is_file()})
    if not files:
        raise DataError(f"{source}: neither a job of `lpo-data distill` nor a file or directory of pairs ({', '.join(_FILES)})")
    counts = dict[str, int]()
    for file in files:
        drops = Drops()
        counts[file.name] = sum(1 for _ in pairs.read(file, drops))
        if drops.rows:
            row, reason = drops.rows[0]
            raise DataError(f"{file}: {len(drops.rows)} rows can't be pairs, e.g. {row}: {reason}; take them out, or mend them")
    card = directory / "README.md"
    text = card.read_text(encoding="utf-8") if not source.is_file() and card.is_file() else _card(repo_id, counts)
    with tempfile.TemporaryDirectory() as staged:
        for file in files:
            shutil.copyfile(file, Path(staged, file.name))
        write_text(Path(staged, "README.md"), _licensed(text, license))
        # The same rows stand in a job's JSON lines and Parquet files.
        total = sum(count for name, count in counts.items() if not (name.endswith(".parquet") and f"{Path(name).stem}.jsonl" in counts))
        url = upload(Path(staged), repo_id, "dataset", f"lpo-data push: {total} pairs", ["*"], private)
    return url, total


def _licensed(text: str, license: str | None) -> str:
    """A card that names a licence."""
    if license is None:
        return text
    front, body = (found[1], text[found.end() :]) if (found := re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)) else ("", f"\n{text}")
    facts = yaml.safe_load(front) or {}
    if facts.get("license", license) != license:
        raise DataError(f"README.md says license: {facts['license']}, and --license {license}: say one")
    return f"---\n{yaml.safe_dump(facts | {'license': license}, sort_keys=False)}---\n{body}"


def _card(repo_id: str, counts: dict[str, int]) -> str:
    """A card for files that have none."""
    rows = "\n".join(f"| {name} | {count} |" for name, count in counts.items())
    front = yaml.safe_dump({"tags": ["code", "security", "preference"], "task_categories": ["text-generation"]}, sort_keys=False)
    return f"""---
{front}---

# {repo_id.partition("/")[2]}

Pairs of secure (`chosen`) and vulnerable (`rejected`) programs, for `lpo-data build hf://{repo_id}`.

| file | pairs |
|---|---|
{rows}

The vulnerable programs are vulnerable on purpose: don't run or deploy them. Nobody has proved the secure ones secure.
"""
