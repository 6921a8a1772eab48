"""The end of the line: no duplicates, no secrets, splits that don't leak, files that others can load."""

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import jinja2
from tqdm import tqdm

from data_pipeline import alike
from data_pipeline.distill.parse import dump
from data_pipeline.distill.prompts import TEMPLATES
from foundation.files import Json, write_lines, write_text

SPLITS = ("train", "validation", "test")
# Detectors of keys in their issuers' formats. Those of passwords by name and of high entropy would fire on every CWE-798 row, by design.
SECRETS = ("AWSKeyDetector", "AzureStorageKeyDetector", "GitHubTokenDetector", "GitLabTokenDetector", "MailchimpDetector", "NpmDetector",
           "OpenAIDetector", "PypiTokenDetector", "SendGridDetector", "SlackDetector", "SquareOAuthDetector", "StripeDetector",
           "TelegramBotTokenDetector", "TwilioKeyDetector")  # fmt: skip


def finish(rows: list[Json], near: float) -> tuple[list[Json], list[tuple[str, str]]]:
    """The rows to keep, and (id, reason) of the others; of several alike the first is kept.

    Args:
      near: Jaccard similarity, of runs of tokens of both sides, from which two rows count as near-duplicates; above 1 none do.
    """
    seen, stayed = set[tuple[str | None, str | None]](), set[frozenset[str]]()
    kept, dropped = [], []
    sets = [alike.shingles(row["chosen"], row["rejected"]) for row in rows]
    for row, own, others in zip(tqdm(rows, desc="finish", unit=" rows"), sets, alike.candidates(sets, near), strict=True):
        exact = dump(row["chosen"]), dump(row["rejected"])
        if exact in seen:
            dropped.append((row["id"], "duplicate"))
        elif any(sets[other] in stayed and alike.alike(own, sets[other], near) for other in others):
            dropped.append((row["id"], "near-duplicate"))
        elif secret := find_secret("\n".join((row["instruction"], row["reasoning"], row["chosen"], row["rejected"]))):
            dropped.append((row["id"], f"secret ({secret})"))
        else:
            seen.add(exact)
            stayed.add(own)
            kept.append(row)
    return kept, dropped


def find_secret(text: str) -> str:
    """The kind of the first key of a known format in a text, or nothing."""
    from detect_secrets.core.scan import scan_line
    from detect_secrets.settings import transient_settings

    with transient_settings({"plugins_used": [{"name": name} for name in SECRETS]}):
        return next((found.type for line in text.splitlines() for found in scan_line(line)), "")


def split(rows: Sequence[Json], by: str, heldout: tuple[float, float], seed: int) -> dict[str, list[Json]]:
    """Rows by split. All rows of a rule, or CWE, fall into one split; which one depends on its name and the seed.

    Args:
      heldout: the shares of rows that go to validation and test, to within a group.
    """
    groups: dict[str, list[Json]] = defaultdict(list)
    for row in rows:
        groups[row["id" if by == "row" else by]].append(row)
    order = sorted(groups, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    found: dict[str, list[Json]] = {name: [] for name in SPLITS}
    for name in order:
        into = next((s for s, share in zip(SPLITS[1:], heldout, strict=True) if len(found[s]) < round(share * len(rows))), "train")
        found[into] += groups[name]
    return found


def write(rows: Sequence[Json], out: Path, by: str, heldout: tuple[float, float], seed: int) -> dict[str, int]:
    """Write JSONL and Parquet files of each split and the card that tells `datasets.load_dataset` about them; returns rows by split."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    finding = pa.struct([(name, pa.string()) for name in ("judge", "rule", "cwe", "severity", "message")] + [("line", pa.int64()), ("end_line", pa.int64())])  # fmt: skip
    texts = ("id", "instruction", "reasoning", "chosen", "rejected", "cwe", "language", "group", "rule", "library", "model", "template")
    schema = pa.schema(
        [(name, pa.string()) for name in texts]
        + [(name, pa.int64()) for name in ("rounds", "findings_before")]
        + [(name, pa.list_(finding)) for name in ("findings", "vulnerable_findings")]
        + [(name, pa.list_(pa.string())) for name in ("judges_failed", "vulnerable_judges_failed")]
    )
    shutil.rmtree(out, ignore_errors=True)  # an earlier run's files of splits that are empty now
    out.mkdir(parents=True)
    splits = split(rows, by, heldout, seed)
    for name, members in splits.items():
        if members:
            write_lines(out / f"{name}.jsonl", members)
            pq.write_table(pa.Table.from_pylist(members, schema=schema), out / f"{name}.parquet")
    env = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), trim_blocks=True, autoescape=False)  # noqa: S701
    counts = {name: len(members) for name, members in splits.items()}
    cwes, libraries, models = (sorted({row[key] for row in rows}) for key in ("cwe", "library", "model"))
    facts = {"splits": counts, "by": by, "cwes": len(cwes), "libraries": len(libraries), "models": models}
    write_text(out / "README.md", env.get_template("card.md.j2").render(facts))
    return counts
