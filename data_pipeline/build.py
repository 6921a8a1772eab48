"""`lpo-data build`: pairs -> tokens and masks -> trees -> packed rows -> shards."""

import hashlib
import json
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipeline import pairs, shards, tokenizer, trees
from data_pipeline.encode import MaskOptions, UnusableError, encode
from data_pipeline.pairs import Drops, Pair
from data_pipeline.shards import Manifest
from data_pipeline.template import render
from foundation.errors import DataError
from foundation.files import sha256, write_text


@dataclass(frozen=True)
class BuildOptions:
    """Everything besides the pairs that decides what is in a shard set."""

    masks: MaskOptions = field(default_factory=MaskOptions)
    row_tokens: int = 2048  # tokens in a packed row; pairs whose tree is longer are dropped
    trim: bool = True
    score_prompt: bool = False
    heldout: float = 0.05  # share of the groups that is held out
    balance_cwe: int = 0  # a CWE of fewer train pairs is topped up to so many; 0: none is
    seed: int = 0


def build(
    inputs: Sequence[str | Path],
    out: str | Path,
    tokenizer_name: str | None,
    options: BuildOptions,
    *,
    vocab_size: int | None = None,
    jobs: int = 1,
    force: bool = False,
) -> Manifest:
    """Build a shard set in `out`; does nothing if the same build is already there.

    Args:
      inputs: files of pairs, see `data_pipeline.pairs.read`.
      tokenizer_name: directory, file or hub id; None trains a byte-level BPE of `vocab_size` on the pairs themselves.
      jobs: processes that tokenise; the result doesn't depend on it.

    Raises:
      DataError: an input can't be read, `out` holds something else, or no pair is left.
    """
    out = Path(out)
    if missing := [str(file) for file in inputs if not Path(file).is_file()]:
        raise DataError(f"{', '.join(missing)}: no such file")
    sources = [{"file": Path(file).name, "sha256": sha256(file)} for file in inputs]
    tok = None if tokenizer_name is None else tokenizer.load(tokenizer_name)
    facts = [shards.FORMAT_VERSION, sources, asdict(options), tok.sha256 if tok else f"train {vocab_size}"]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    if not force and (out / "manifest.json").is_file():
        manifest = Manifest.load(out)
        if manifest.build_key != key:
            raise DataError(f"{out}: holds a shard set of other inputs or options; pass --force to replace it, or another --out")
        if _whole(out, manifest):
            print(f"{out} is up to date")
            return manifest
        print(f"{out} is incomplete or damaged: building it again")

    drops = Drops()
    kept = [pair for file in inputs for pair in tqdm(pairs.read(file, drops), desc=f"read {Path(file).name}", unit=" pairs")]
    if tok is None:
        assert vocab_size is not None
        texts = (t.prompt + t.before_code + code + t.after_code for t in map(render, kept) for code in (t.chosen, t.rejected))
        tok = tokenizer.train(texts, vocab_size)
    _clear(out)
    tok.save(out / "tokenizer")

    planted: list[tuple[Pair, trees.Tree]] = []
    for pair, tree in zip(kept, tqdm(_plant_all(kept, out / "tokenizer", options, jobs), "tokenise", len(kept)), strict=True):
        if isinstance(tree, str):
            drops.add(pair.id, tree)
        elif len(tree.tokens) > options.row_tokens:
            drops.add(pair.id, f"longer than --row-tokens {options.row_tokens}")
        else:
            planted.append((pair, tree))
    write_text(out / "dropped.tsv", "".join(f"{row}\t{reason}\n" for row, reason in drops.rows))
    if not planted:
        raise DataError(f"no pair is left of {len(drops.rows)} rows ({drops.counts()}); {out / 'dropped.tsv'} lists them")

    heldout = heldout_groups([pair for pair, _ in planted], options.heldout, options.seed)
    rows = {}
    for split in shards.SPLITS:
        own = [(pair, tree) for pair, tree in planted if ((pair.group or pair.id) in heldout) == (split == "heldout")]
        if split == "train":
            drawn = [own[i] for i in draws([pair.cwe for pair, _ in own], options.balance_cwe, options.seed)]
            balanced = Counter(pair.cwe for pair, _ in drawn)
            own += drawn
            own = [own[i] for i in np.random.default_rng(options.seed).permutation(len(own))]
        members = [tree for _, tree in own]
        packed = trees.pack([len(tree.tokens) for tree in members], options.row_tokens)
        rows[split] = [(trees.join([members[i] for i in row]), "\n".join(members[i].id for i in row)) for row in packed]
    every = [row for split in rows.values() for row, _ in split]
    manifest = Manifest(
        format_version=shards.FORMAT_VERSION,
        tokenizer_sha256=tok.sha256,
        vocab_size=tok.size,
        eos_id=tok.eos_id,
        bos_id=tok.bos_id,
        masks=asdict(options.masks),
        trimmed=options.trim,
        scores_prompt=options.score_prompt,
        row_tokens=options.row_tokens,
        row_scored=-(-max(len(row["source"]) for row in every) // 64) * 64,
        row_pairs=max(len(row["chosen_len"]) for row in every),
        longest_path=int(max(row["positions"].max() for row in every)) + 1,
        splits={split: shards.write(out, split, rows[split]) for split in shards.SPLITS},
        drops=drops.counts(),
        inputs=sources,
        build_key=key,
        plain=sum(pair.plain for pair, _ in planted),
        balanced=dict(sorted(balanced.items())),
    )
    manifest.save(out)
    return manifest


def heldout_groups(kept: Sequence[Pair], share: float, seed: int) -> set[str]:
    """The groups to hold out: about `share` of each CWE's, chosen by hash, so the choice doesn't depend on the other pairs' order."""
    cwe_of: dict[str, str] = {}  # a group's CWE is that of its first pair
    for pair in kept:
        cwe_of.setdefault(pair.group or pair.id, pair.cwe)
    heldout, owed = set(), 0.0
    for cwe in sorted(set(cwe_of.values())):
        mine = [group for group, of in cwe_of.items() if of == cwe]
        ranked = sorted(mine, key=lambda group: hashlib.sha256(f"{seed} {group}".encode()).digest())
        owed += share * len(ranked)
        take = min(int(owed), len(ranked))
        owed -= take
        heldout.update(ranked[:take])
    return heldout


def draws(cwes: Sequence[str], least: int, seed: int) -> list[int]:
    """Indices to draw once more, so that every CWE has `least` pairs: with replacement, each CWE by a generator of its own."""
    found = []
    for cwe in sorted({cwe for cwe in cwes if cwe}):
        mine = [i for i, other in enumerate(cwes) if other == cwe]
        rng = np.random.default_rng((seed, *cwe.encode()))
        found += [mine[i] for i in rng.integers(len(mine), size=max(least - len(mine), 0))]
    return found


def _plant_all(kept: Sequence[Pair], tokenizer_dir: Path, options: BuildOptions, jobs: int) -> Iterator[trees.Tree | str]:
    """Each pair's tree, or the reason why it has none."""
    settings = (str(tokenizer_dir), options)
    if jobs == 1:
        _start_worker(*settings)
        yield from map(_plant, kept)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, _start_worker, settings) as pool:
        yield from pool.imap(_plant, kept, chunksize=32)


_worker: tuple[tokenizer.Tokenizer, BuildOptions]


def _start_worker(tokenizer_dir: str, options: BuildOptions) -> None:
    global _worker
    _worker = tokenizer.load(tokenizer_dir), options


def _plant(pair: Pair) -> trees.Tree | str:
    tok, options = _worker
    try:
        return trees.plant(encode(pair, tok, options.masks), options.trim, options.score_prompt)
    except UnusableError as reason:
        return str(reason)


def _whole(out: Path, manifest: Manifest) -> bool:
    files = [shard for split in manifest.splits.values() for shard in split["shards"]]
    return all((out / s["file"]).is_file() and sha256(out / s["file"]) == s["sha256"] for s in files)


def _clear(out: Path) -> None:
    """Empty an earlier build's directory; anything else in it is left alone, and is an error."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)  # from here on the set is unfinished
    for path in out.iterdir():
        if path.suffix == ".tfrecord" or path.name == "dropped.tsv" or path.suffix == ".tmp":
            path.unlink()
        elif path.name == "tokenizer" and path.is_dir():
            shutil.rmtree(path)
        else:
            raise DataError(f"{out}: holds {path.name}, which no build wrote; choose an empty --out directory")
