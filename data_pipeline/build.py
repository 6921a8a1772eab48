"""`lpo-data build`: pairs -> tokens and masks -> trees -> packed rows -> shards."""

import hashlib
import itertools
import json
import multiprocessing
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipeline import alike, pairs, records, shards, template, tokenizer, trees
from data_pipeline.chat import TemplateError
from data_pipeline.encode import MaskOptions, UnusableError, encode
from data_pipeline.pairs import Drops, Pair
from data_pipeline.shards import Manifest
from data_pipeline.template import Template
from foundation.errors import DataError
from foundation.files import foreign, hold_directory, sha256, write_text


@dataclass(frozen=True)
class BuildOptions:
    """Everything besides the pairs that decides what is in a shard set."""

    masks: MaskOptions = field(default_factory=MaskOptions)
    row_tokens: int = 2048  # tokens in a packed row; pairs whose tree is longer are dropped
    trim: bool = True
    score_prompt: bool = False
    heldout: float = 0.05  # share of the groups that is held out
    balance_cwe: int = 0  # a CWE of fewer train pairs is topped up to so many; 0: none is
    near: float = 0.85  # Jaccard similarity from which pairs are alike, and fall on one side of the held-out split; above 1: none are
    drop_cosmetic: bool = False  # drop pairs that differ in blanks and comments only
    seed: int = 0
    template: str | None = None  # see `data_pipeline.template.load`
    system: str = ""  # the system text of a chat


def build(
    inputs: Sequence[str | Path],
    out: str | Path,
    tokenizer_name: str | None,
    options: BuildOptions,
    *,
    vocab_size: int | None = None,
    jobs: int = 1,
    force: bool = False,
    heldout: Sequence[str | Path] = (),
) -> Manifest:
    """Build a shard set in `out`; does nothing if the same build is already there.

    Args:
      inputs: files, directories or hub ids of pairs, see `data_pipeline.pairs.read`.
      tokenizer_name: directory, file or hub id; None trains a byte-level BPE of `vocab_size` on the pairs themselves.
      jobs: processes that tokenise; the result doesn't depend on it.
      heldout: inputs whose pairs are the held-out split, instead of a share of the others; of these, pairs that are alike theirs are dropped.

    Raises:
      DataError: an input can't be read, `out` holds something else, or no pair is left.
    """
    out = Path(out)
    sources, apart = ([records.facts(file) for file in files] for files in (inputs, heldout))
    tok = None if tokenizer_name is None else tokenizer.load(tokenizer_name)
    chosen, why = template.load(options.template, tok, options.system)
    facts = [
        shards.FORMAT_VERSION,
        sources,
        asdict(options),
        asdict(chosen),
        tok.sha256 if tok else f"train {vocab_size}",
        *([apart] if apart else []),
    ]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    if not force and (out / "manifest.json").is_file():
        manifest = Manifest.load(out)
        if manifest.build_key != key:
            raise DataError(f"{out}: holds a shard set of other inputs or options; pass --force to replace it, or another --out")
        if _whole(out, manifest):
            print(f"{out} is up to date")
            return manifest
        print(f"{out} is incomplete or damaged: building it again")

    print(f"template {chosen.name}: {why}")
    with hold_directory(out):
        _own(out)
        drops = Drops()
        kept, own = (_read(files, options, drops) if files else [] for files in (inputs, heldout))
        if tok is None:
            assert vocab_size is not None
            tok = tokenizer.train(_texts(kept, chosen), vocab_size)
        theirs = frozenset(own)
        write_text(out / "dropped.tsv", "")  # first: it tells a build, also one that was stopped
        for path in _own(out):
            if path.name != "dropped.tsv":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        tok.save(out / "tokenizer")
        planted = _plant_all([*kept, *own], out / "tokenizer", chosen, options, jobs, drops)
        if theirs:
            planted = _apart(planted, theirs, options.near, drops)
        write_text(out / "dropped.tsv", "".join(f"{row}\t{' '.join(reason.split())}\n" for row, reason in drops.rows))
        if not planted:
            raise DataError(f"{_none_left(inputs, drops)}; {out / 'dropped.tsv'} lists them")
        _note([pair for pair, _ in planted], drops)
        rows, balanced = _pack(planted, options, theirs)
        every = [row for split in rows.values() for row, _ in split]
        thinks = any(pair.reasoning for pair, _ in planted)
        print("writing the shards", flush=True)  # TensorFlow is loaded for it, which takes seconds
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
            inputs=sources + apart,
            build_key=key,
            plain=sum(pair.plain for pair, _ in planted),
            balanced=dict(sorted(balanced.items())),
            template=asdict(replace(chosen, thinks=thinks)),
            notes=dict(sorted(drops.notes.items())),
            unused={file: dict(sorted(columns.items())) for file, columns in drops.unused.items() if columns},
        )
        manifest.save(out)
        return manifest


def _none_left(inputs: Sequence[str | Path], drops: Drops) -> str:
    names = ", ".join(map(str, inputs))
    reasons = "; ".join(f"{count} {reason}" for reason, count in drops.counts().items())
    return (
        f"{names}: no pair is left of {len(drops.rows)} rows: {reasons}"
        if drops.rows
        else f"{names}: no row in it; give pairs, a line each"
    )


def _read(inputs: Sequence[str | Path], options: BuildOptions, drops: Drops) -> list[Pair]:
    """The inputs' pairs that can be used."""
    kept = [pair for file in inputs for pair in tqdm(pairs.read(file, drops), desc=f"read {Path(file).name}", unit=" pairs")]
    if not kept:
        raise DataError(_none_left(inputs, drops))
    cosmetic, remark = [pairs.cosmetic(pair) for pair in kept], "its sides differ in blanks and comments only"
    if options.drop_cosmetic:
        for pair in itertools.compress(kept, cosmetic):
            drops.add(pair.id, remark)
        return [pair for pair, so in zip(kept, cosmetic, strict=True) if not so]
    if any(cosmetic):
        drops.notes[remark] = sum(cosmetic)
    return kept


def _apart(planted: Sequence[tuple[Pair, trees.Tree]], theirs: frozenset[Pair], near: float, drops: Drops) -> list[tuple[Pair, trees.Tree]]:
    """All but those pairs that are alike one of `theirs`, or share its commit, and aren't theirs."""
    groups = grouped([pair for pair, _ in planted], near)
    taken = {group for (pair, _), group in zip(planted, groups, strict=True) if pair in theirs}
    left = []
    for (pair, tree), group in zip(planted, groups, strict=True):
        if group in taken and pair not in theirs:
            drops.add(pair.id, "alike a pair of --heldout-file")
        else:
            left.append((pair, tree))
    return left


def _pack(
    planted: Sequence[tuple[Pair, trees.Tree]], options: BuildOptions, theirs: frozenset[Pair]
) -> tuple[dict[str, list[tuple[dict[str, np.ndarray], str]]], Counter[str]]:
    """Each split's rows with the ids of their pairs, and how many pairs of each CWE were drawn once more.

    Args:
      theirs: the held-out pairs, where they have files of their own.
    """
    remaining = [pair for pair, _ in planted]
    if theirs:
        chosen = [pair in theirs for pair in remaining]
    else:
        groups = grouped(remaining, options.near)
        heldout = heldout_groups(remaining, groups, options.heldout, options.seed)
        chosen = [group in heldout for group in groups]
    rows, balanced = {}, Counter[str]()
    for split in shards.SPLITS:
        own = [member for member, apart in zip(planted, chosen, strict=True) if apart == (split == "heldout")]
        if split == "train":
            drawn = [own[i] for i in draws([pair.cwe for pair, _ in own], options.balance_cwe, options.seed)]
            balanced = Counter(pair.cwe for pair, _ in drawn)
            own += drawn
            own = [own[i] for i in np.random.default_rng(options.seed).permutation(len(own))]
        members = [tree for _, tree in own]
        packed = trees.pack([len(tree.tokens) for tree in members], options.row_tokens)
        rows[split] = [(trees.join([members[i] for i in row]), "\n".join(members[i].id for i in row)) for row in packed]
    return rows, balanced


def _texts(kept: Sequence[Pair], chosen: Template) -> Iterator[str]:
    """What a tokenizer learns from. A pair that the template refuses is dropped when it is encoded."""
    for pair in kept:
        try:
            text = template.render(pair, chosen, None)
        except TemplateError:
            continue
        yield from (text.prompt.text + text.answer(code) for code in (text.chosen, text.rejected))


def _note(kept: Sequence[Pair], drops: Drops) -> None:
    """Count what is to be known of the pairs that stay."""
    compared = [pair for pair in kept if not pair.plain]
    ids = Counter(pair.id for pair in kept)
    for remark, count in (
        ("its sides are whole answers, not code", sum(not pair.code for pair in compared)),
        ("its sides begin differently", sum(pair.chosen[:1] != pair.rejected[:1] for pair in compared)),
        ("another has the same id", sum(n for n in ids.values() if n > 1)),
    ):
        if count:
            drops.notes[remark] = count


def grouped(kept: Sequence[Pair], near: float) -> list[str]:
    """For each pair the name of its group: of those that share a commit, or are alike, or are so by others between them.

    Python code is also alike where it is so without its names.
    """
    found = dict[str, str]()  # a group -> one that it belongs to

    def root(name: str) -> str:
        while found.setdefault(name, name) != name:
            name = found[name]
        return name

    own = [pair.group or pair.id for pair in kept]
    if near > 1:
        return own
    texts = [alike.shingles(pair.instruction, pair.chosen, pair.rejected) for pair in kept]
    codes = {
        number: alike.shingles(*skeletons)
        for number, pair in enumerate(kept)
        if pair.code and pair.language.startswith("py") and all(skeletons := [alike.skeleton(pair.chosen), alike.skeleton(pair.rejected)])
    }
    for numbers, sets in ((range(len(kept)), texts), (list(codes), list(codes.values()))):
        for i, others in enumerate(tqdm(alike.candidates(sets, near), "find what is alike", len(sets), unit=" pairs")):
            for j in others:
                a, b = root(own[numbers[i]]), root(own[numbers[j]])
                if a != b and alike.alike(sets[i], sets[j], near):
                    found[a] = b
    return [root(name) for name in own]


def heldout_groups(kept: Sequence[Pair], groups: Sequence[str], share: float, seed: int) -> set[str]:
    """The groups to hold out: about `share` of each CWE's, chosen by hash, so the choice doesn't depend on the other pairs' order."""
    cwe_of: dict[str, str] = {}  # a group's CWE is that of its first pair
    for pair, group in zip(kept, groups, strict=True):
        cwe_of.setdefault(group, pair.cwe)
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


def _plant_all(
    kept: Sequence[Pair], tokenizer_dir: Path, chosen: Template, options: BuildOptions, jobs: int, drops: Drops
) -> list[tuple[Pair, trees.Tree]]:
    """The pairs with their trees; those that have none, or a longer one than a row, are dropped."""
    planted = []
    found = _trees(kept, tokenizer_dir, chosen, options, jobs)
    for pair, tree in zip(kept, tqdm(found, "tokenise", len(kept)), strict=True):
        if isinstance(tree, str):
            drops.add(pair.id, tree)
        elif len(tree.tokens) > options.row_tokens:
            drops.add(pair.id, f"longer than --row-tokens {options.row_tokens}")
        else:
            planted.append((pair, tree))
    return planted


def _trees(kept: Sequence[Pair], tokenizer_dir: Path, chosen: Template, options: BuildOptions, jobs: int) -> Iterator[trees.Tree | str]:
    """Each pair's tree, or the reason why it has none."""
    settings = (str(tokenizer_dir), chosen, options)
    if jobs == 1:
        _start_worker(*settings)
        yield from map(_plant, kept)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, _start_worker, settings) as pool:
        yield from pool.imap(_plant, kept, chunksize=32)


_worker: tuple[tokenizer.Tokenizer, Template, BuildOptions]


def _start_worker(tokenizer_dir: str, chosen: Template, options: BuildOptions) -> None:
    global _worker
    _worker = tokenizer.load(tokenizer_dir), chosen, options


def _plant(pair: Pair) -> trees.Tree | str:
    tok, chosen, options = _worker
    try:
        return trees.plant(encode(pair, tok, chosen, options.masks, options.row_tokens), options.trim, options.score_prompt)
    except UnusableError as reason:
        return str(reason)


def _whole(out: Path, manifest: Manifest) -> bool:
    files = [shard for split in manifest.splits.values() for shard in split["shards"]]
    return all((out / s["file"]).is_file() and sha256(out / s["file"]) == s["sha256"] for s in files)


_UNFINISHED = r"(\.\d+\.[0-9a-f]{8}\.tmp)?"
_WRITTEN = re.compile(rf"(manifest\.json|dropped\.tsv){_UNFINISHED}|(train|heldout)-\d{{5}}-of-\d{{5}}\.tfrecord")
_TOKENIZER = re.compile(rf"(tokenizer\.json|tokenizer_config\.json|{re.escape(tokenizer.CHAT_FILE)}){_UNFINISHED}")


def _own(out: Path) -> list[Path]:
    """What an earlier build left in `out`, its manifest first: without that a set is unfinished. Every build begins with dropped.tsv.

    Raises:
      DataError: something else lies there.
    """
    found = [path for path in out.iterdir() if _WRITTEN.fullmatch(path.name)]
    if any(path.name in ("manifest.json", "dropped.tsv") for path in found):
        saved = out / "tokenizer"
        if saved.is_dir() and not saved.is_symlink() and all(_TOKENIZER.fullmatch(path.name) for path in saved.iterdir()):
            found.append(saved)
    else:
        found = []
    if other := foreign(out, [path.name for path in found]):
        raise DataError(f"{out}: holds {other[0]}, which no build wrote; choose an empty --out directory")
    return sorted(found, key=lambda path: path.name != "manifest.json")
