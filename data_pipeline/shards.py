"""Shard sets: a directory of TFRecord files with packed rows, described by `manifest.json`.

The manifest is written last, so a directory without one is an unfinished build. A shard's sha256 stands in the manifest and is
verified when the set is opened, so a truncated or damaged file can't reach training.
"""

import dataclasses
import hashlib
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from data_pipeline.row import COLUMNS, PackedRows, RowShape
from data_pipeline.template import of_facts
from foundation.errors import DataError
from foundation.files import Json, read_json, sha256, write_json
from foundation.settings import Count, Positive, Settings

FORMAT_VERSION = 1
ROWS_PER_SHARD = 1024
SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Manifest(Settings):
    """What a shard set holds."""

    format_version: int
    tokenizer_sha256: str
    vocab_size: Positive
    eos_id: int
    bos_id: int | None
    masks: Json  # MaskOptions
    trimmed: bool  # the rejected branches end at their last changed token
    scores_prompt: bool
    row_tokens: Positive  # T
    row_scored: Count  # N, the most in any row, rounded up
    row_pairs: Count  # P
    longest_path: Count  # tokens that a model reads in one sequence, at most
    splits: dict[str, Json]  # name -> _Split
    drops: dict[str, int]  # reason -> count; dropped.tsv lists the rows
    inputs: list[Json]  # [{file, sha256}]
    build_key: str  # hash of inputs and options: the same key, the same shards
    plain: int = 0  # rows with a response but nothing to compare it with; splits count them among the pairs
    balanced: dict[str, int] = dataclasses.field(default_factory=dict)  # CWE -> pairs that were drawn into the train split once more
    template: Json = dataclasses.field(default_factory=dict)  # Template; sets made before it was written are in Alpaca's
    notes: dict[str, int] = dataclasses.field(default_factory=dict)  # remark -> pairs
    unused: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)  # file -> column that nothing reads -> rows

    @property
    def row_shape(self) -> RowShape:
        return RowShape(self.row_tokens, self.row_scored, self.row_pairs)

    def save(self, directory: Path) -> None:
        write_json(directory / "manifest.json", dataclasses.asdict(self))

    @staticmethod
    def load(directory: str | Path) -> "Manifest":
        """Read a shard set's manifest.

        Raises:
          DataError: there is none, or it is damaged or of another format version.
        """
        file = Path(directory) / "manifest.json"
        remedy = "build the set with `lpo-data build`"
        if not file.is_file():
            raise DataError(f"{file}: no such file; {remedy}")
        return Manifest.read(file, f"{remedy} again")

    @staticmethod
    def read(file: Path, remedy: str = "copy it again from where the run was trained") -> "Manifest":
        """Read a manifest, or its copy in a run's directory.

        Raises:
          DataError: it is damaged, or of another format version.
        """
        raw = read_json(file, remedy)
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version != FORMAT_VERSION:
            raise DataError(f"{file}: format version {version}, this program reads {FORMAT_VERSION}; {remedy}")
        try:
            found = TypeAdapter(Manifest).validate_python(raw)
            _SPLITS.validate_python(found.splits)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = " ".join(".".join(map(str, first["loc"])).split())[:80]
            raise DataError(f"{file}: damaged ({where or 'all of it'}: {first['msg']}); {remedy}") from None
        of_facts(found.template, str(file), remedy)
        return found


@dataclass
class _Shard:
    file: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]  # beside the manifest
    rows: Count
    sha256: str


@dataclass
class _Split:
    rows: Count
    pairs: Count
    tokens: Annotated[int, Field(ge=0)]
    shards: list[_Shard]


_SPLITS = TypeAdapter(Annotated[dict[Literal["train", "heldout"], _Split], Field(min_length=2)])


def write(directory: Path, split: str, rows: Sequence[tuple[dict[str, np.ndarray], str]]) -> Json:
    """Write one split's rows, each with the ids of its pairs (newline-separated); returns the split's manifest entry."""
    from data_pipeline.tf import tf

    count = -(-len(rows) // ROWS_PER_SHARD)
    shards = []
    for index in range(count):
        file = directory / f"{split}-{index:05d}-of-{count:05d}.tfrecord"
        part = rows[index * ROWS_PER_SHARD : (index + 1) * ROWS_PER_SHARD]
        with tf.io.TFRecordWriter(str(file)) as writer:
            for row, ids in part:
                feature = {
                    column.name: tf.train.Feature(int64_list=tf.train.Int64List(value=row[column.name].astype(np.int64)))
                    for column in COLUMNS
                }
                feature["ids"] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[ids.encode()]))
                writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString(deterministic=True))
        shards.append({"file": file.name, "rows": len(part), "sha256": sha256(file)})
    return {
        "rows": len(rows),
        "pairs": sum(len(row["chosen_len"]) for row, _ in rows),
        "tokens": int(sum(len(row["tokens"]) for row, _ in rows)),
        "shards": shards,
    }


def parse(record: bytes) -> tuple[PackedRows, list[str]]:
    """A serialised row as a batch of one, nothing padded, and its pairs' ids."""
    from data_pipeline.tf import tf

    features = tf.train.Example.FromString(record).features.feature
    columns = {column.name: np.array(features[column.name].int64_list.value).astype(column.dtype)[None] for column in COLUMNS}
    return PackedRows(**columns), features["ids"].bytes_list.value[0].decode().split("\n")


def joined(sets: Mapping[str, Manifest]) -> Manifest:
    """The manifest of several sets, by directory, that are read as one. What counts is counted together, the widest row is the row's shape,
    and the tokenizer is the same; how they were built (masks, template) is said of the first alone.

    Raises:
      DataError: they don't share their tokenizer.
    """
    (first, one), *others = sets.items()
    if not others:
        return one
    if other := next((name for name, found in others if found.tokenizer_sha256 != one.tokenizer_sha256), None):
        raise DataError(
            f"{other} was built with another tokenizer than {first}: rebuild it with `lpo-data build ... --tokenizer {first}/tokenizer`"
        )
    found = list(sets.values())

    def total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
        return dict(sorted(sum(map(Counter, counts), Counter[str]()).items()))

    def split(name: str) -> Json:
        entries = [manifest.splits[name] for manifest in found]
        counts = {key: sum(entry[key] for entry in entries) for key in ("rows", "pairs", "tokens")}
        return counts | {"shards": [shard for entry in entries for shard in entry["shards"]]}

    return dataclasses.replace(
        one,
        trimmed=any(manifest.trimmed for manifest in found),
        scores_prompt=all(manifest.scores_prompt for manifest in found),
        row_tokens=max(manifest.row_tokens for manifest in found),
        row_scored=max(manifest.row_scored for manifest in found),
        row_pairs=max(manifest.row_pairs for manifest in found),
        longest_path=max(manifest.longest_path for manifest in found),
        splits={name: split(name) for name in SPLITS},
        drops=total(manifest.drops for manifest in found),
        inputs=[file for manifest in found for file in manifest.inputs],
        build_key=hashlib.sha256("".join(manifest.build_key for manifest in found).encode()).hexdigest(),
        plain=sum(manifest.plain for manifest in found),
        balanced=total(manifest.balanced for manifest in found),
        notes=total(manifest.notes for manifest in found),
        unused={file: columns for manifest in found for file, columns in manifest.unused.items()},
    )


class Records:
    """Random access to the serialised rows of a split, over all its shards; of several sets (directory, the manifest's entry) one after another.

    Attributes:
      sizes: rows of each set.
    """

    def __init__(self, *sets: tuple[str | Path, Json]):
        self._index: list[tuple[np.ndarray, int, int]] = []  # (shard, start, stop)
        self.sizes: list[int] = []
        for directory, entry in sets:
            before = len(self)
            for facts in entry["shards"]:
                file = Path(directory) / facts["file"]
                remedy = "copy the file again or rebuild the set with `lpo-data build --force`"
                if not file.is_file():
                    raise DataError(f"{file}: missing shard; {remedy}")
                if sha256(file) != facts["sha256"]:
                    raise DataError(f"{file}: damaged shard (its sha256 isn't the manifest's); {remedy}")
                shard = np.memmap(file, np.uint8, mode="r")
                self._index += [(shard, *span) for span in _record_spans(shard)]
            self.sizes.append(len(self) - before)

    def __len__(self) -> int:
        return len(self._index)

    def read(self, row: int) -> bytes:
        """The serialised `tf.train.Example` of a row."""
        shard, start, stop = self._index[row]
        return shard[start:stop].tobytes()


def _record_spans(content: np.ndarray) -> Iterable[tuple[int, int]]:
    """Byte ranges of a TFRecord file's payloads: length (8 bytes), checksum (4), payload, checksum (4)."""
    at = 0
    while at < len(content):
        (length,) = struct.unpack("<Q", content[at : at + 8].tobytes())
        yield at + 12, at + 12 + length
        at += 12 + length + 4
