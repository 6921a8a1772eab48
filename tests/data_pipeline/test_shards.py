"""Shard sets and the feed: what goes in comes out, batches are a function of (seed, step), damage is refused."""

import dataclasses
import json
import shutil
from collections import Counter

import numpy as np
import pytest

from data_pipeline import pairs
from data_pipeline.build import BuildOptions, build, draws, grouped, heldout_groups
from data_pipeline.cli import main
from data_pipeline.feed import Feed
from data_pipeline.order import stream_rows
from data_pipeline.pairs import DataError, Drops, Pair
from data_pipeline.row import COLUMNS
from data_pipeline.shards import Manifest
from tests.helpers.paths import SEED_PAIRS

FIELDS = [column.name for column in COLUMNS]


def same(a, b):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def small_build(tmp_path, name="out", n=24, **options):
    found = list(pairs.read(SEED_PAIRS, Drops()))[:n]
    pairs.write(found, tmp_path / "in.jsonl")
    jobs = options.pop("jobs", 1)
    return build([tmp_path / "in.jsonl"], tmp_path / name, None, BuildOptions(row_tokens=2048, **options), vocab_size=400, jobs=jobs)


def test_every_pair_is_in_exactly_one_row(seed_shards):
    feed = Feed(seed_shards["trimmed"])
    ids = [i for split in ("train", "heldout") for row in range(feed.rows(split)) for i in feed.pair_ids(split, row)]
    expected = {p.id for p in pairs.read(SEED_PAIRS, Drops())}
    dropped = {line.split("\t")[0] for line in (seed_shards["trimmed"] / "dropped.tsv").read_text().splitlines()}
    assert len(ids) == len(set(ids))
    assert set(ids) | dropped == expected
    assert sum(feed.manifest.drops.values()) == len(dropped)


def test_batches_hold_the_written_rows_and_pad_the_rest(seed_shards):
    feed = Feed(seed_shards["trimmed"])
    m = feed.manifest
    batch = next(feed.batches(4, 0, 1))
    assert batch.tokens.shape == (4, m.row_tokens)
    assert batch.source.shape == (4, m.row_scored)
    assert batch.chosen_len.shape == (4, m.row_pairs)
    assert (batch.tokens.dtype, batch.side.dtype, batch.changed.dtype) == (np.int32, np.int8, bool)
    for r, row in enumerate(stream_rows((0, 0), feed.rows("train"), 4, 0)):
        ids = feed.pair_ids("train", int(row))
        assert batch.pair[r].max() + 1 == len(ids) == (batch.chosen_len[r] > 0).sum()
        padding = batch.pair[r] == -1
        assert not (batch.answer[r] | batch.changed[r])[padding].any()
        assert (batch.subtree_end[r] > np.arange(m.row_tokens)).all()
        used = int(batch.positions[r].nonzero()[0].max()) + 1
        assert (batch.subtree_end[r, used:] == np.arange(used, m.row_tokens) + 1).all()
        assert not batch.tokens[r, used:].any()


def test_a_batch_is_a_function_of_seed_and_step(seed_shards):
    feed = Feed(seed_shards["trimmed"], seed=7)
    straight = list(feed.batches(3, 0, 45))  # more than one epoch
    for start in (0, 1, 30, 44):
        same(next(Feed(seed_shards["trimmed"], seed=7).batches(3, start, 45)), straight[start])
    other = next(feed.batches(3, 0, 1, stream=1))
    assert not np.array_equal(other.tokens, straight[0].tokens)


def test_processes_share_a_batch(seed_shards):
    whole = next(Feed(seed_shards["trimmed"]).batches(4, 5, 6))
    for mine in ([0, 1], [2, 3], [1, 3], [0]):
        part = next(Feed(seed_shards["trimmed"]).batches(4, 5, 6, mine=mine))
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[mine])


def test_heldout_reads_every_row_once_in_order(seed_shards):
    feed = Feed(seed_shards["trimmed"])
    batches = list(feed.heldout(4))
    assert len(batches) == -(-feed.rows("heldout") // 4)
    assert sum((b.chosen_len > 0).sum() for b in batches) == feed.manifest.splits["heldout"]["pairs"]


def test_the_split_is_by_group_and_cwe():
    many = [Pair(f"p{i}", "a", "b", cwe=f"CWE-{i % 5}", group=f"g{i // 3}") for i in range(300)]
    held = heldout_groups(many, [pair.group for pair in many], 0.1, 0)
    assert len(held) == 10
    alone = [Pair(f"p{i}", "a", "b", cwe=f"CWE-{i % 5}") for i in range(100)]
    own = [pair.id for pair in alone]
    cwes = sorted(p.cwe for p in alone if p.id in heldout_groups(alone, own, 0.2, 0))
    assert cwes == sorted(f"CWE-{i % 5}" for i in range(20))
    assert heldout_groups(alone, own, 0.2, 0) != heldout_groups(alone, own, 0.2, 1)
    assert heldout_groups(alone, own, 0.0, 0) == set()


def test_what_is_alike_is_of_one_group():
    """By a commit, by the code, or by both in turn."""
    body = "def f(a, b):\n    total = a + b * 3\n    return [total, a, b, total - a]\n"
    kept = [
        Pair("a", body + "safe()\n", body + "bad()\n", "Add."),
        Pair("b", body + "safe()\n", body + "bad()\n", "Add.", group="c1"),
        Pair("c", "print(1)\n", "print(2)\n", "Print.", group="c1"),
        Pair("d", "import os\nos.remove(x)\n", "import os\nos.system(x)\n", "Remove."),
    ]
    groups = grouped(kept, 0.85)
    assert groups[0] == groups[1] == groups[2] != groups[3]
    assert len(set(grouped(kept, 2.0))) == 3


def test_builds_are_reproducible_whatever_the_jobs(tmp_path):
    first = small_build(tmp_path, "a")
    second = small_build(tmp_path, "b", jobs=2)
    assert first == second
    assert (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes()


def test_a_finished_build_is_not_repeated_but_a_damaged_one_is(tmp_path, capsys):
    manifest = small_build(tmp_path)
    assert small_build(tmp_path) == manifest
    assert "up to date" in capsys.readouterr().out
    shard = tmp_path / "out" / manifest.splits["train"]["shards"][0]["file"]
    shard.write_bytes(shard.read_bytes()[:-7])
    small_build(tmp_path)
    Feed(tmp_path / "out")
    with pytest.raises(DataError, match="--force"):
        small_build(tmp_path, seed=1)
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"thesis\.txt, which no build wrote"):
        small_build(tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damaged_shards_are_refused(tmp_path, damage):
    manifest = small_build(tmp_path)
    shard = tmp_path / "out" / manifest.splits["train"]["shards"][0]["file"]
    content = bytearray(shard.read_bytes())
    if damage == "remove":
        shard.unlink()
    elif damage == "truncate":
        shard.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    with pytest.raises(DataError, match=rf"{shard.name}: (damaged|missing) shard.*rebuild the set"):
        Feed(tmp_path / "out")


def test_manifest_errors(tmp_path):
    with pytest.raises(DataError, match=r"no such file; build the set with `lpo-data build`"):
        Feed(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        Manifest.load(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(DataError, match="format version 99"):
        Manifest.load(tmp_path)


def test_too_long_and_equal_pairs_are_counted_drops(tmp_path):
    rows = list(pairs.read(SEED_PAIRS, Drops()))[:6]
    rows.append(dataclasses.replace(rows[0], id="long", chosen=rows[0].chosen * 60, rejected=rows[0].rejected * 60))
    pairs.write(rows, tmp_path / "in.jsonl")
    with open(tmp_path / "in.jsonl", "a") as file:
        file.write(json.dumps({"id": "twins", "chosen": "a", "rejected": "a"}) + "\n")
    manifest = build([tmp_path / "in.jsonl"], tmp_path / "out", None, BuildOptions(row_tokens=1024), vocab_size=400)
    assert manifest.drops == {"both sides are equal": 1, "longer than --row-tokens 1024": 1}
    assert (tmp_path / "out" / "dropped.tsv").read_text().splitlines() == [
        "in.jsonl:8\tboth sides are equal",
        "long\tlonger than --row-tokens 1024",
    ]
    with pytest.raises(
        DataError, match=r"in\.jsonl: no pair is left of 8 rows: 1 both sides are equal; 7 longer than --row-tokens 8; .*dropped\.tsv"
    ):
        build([tmp_path / "in.jsonl"], tmp_path / "none", None, BuildOptions(row_tokens=8), vocab_size=400)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"empty\.jsonl: no row in it"):
        build([tmp_path / "empty.jsonl"], tmp_path / "nothing", None, BuildOptions(row_tokens=8), vocab_size=400)
    assert not (tmp_path / "nothing").exists()


def test_templates_are_part_of_a_build(tmp_path):
    """What one refuses is dropped, also where a tokenizer is trained first; and another chat template is another build."""
    rows = list(pairs.read(SEED_PAIRS, Drops()))[:4]
    pairs.write([dataclasses.replace(rows[0], instruction="No thanks."), *rows[1:]], tmp_path / "in.jsonl")
    (tmp_path / "picky.j2").write_text(
        "{% block prompt %}{% if 'No' in instruction %}{{ raise_exception('never') }}{% endif %}{{ instruction }}{% endblock %}"
        "{% block answer %}{{ code }}{% endblock %}"
    )
    options = BuildOptions(row_tokens=1024, template=str(tmp_path / "picky.j2"))
    manifest = build([tmp_path / "in.jsonl"], tmp_path / "out", None, options, vocab_size=400)
    assert manifest.drops == {"template picky.j2: never": 1} and manifest.template["name"] == "picky.j2"
    tokenizer = tmp_path / "out" / "tokenizer"
    for word in ("Ask", "Beg"):
        (tokenizer / "chat_template.jinja").write_text(word + " {{ messages[-1].content }}")
        found = build([tmp_path / "in.jsonl"], tmp_path / word, str(tokenizer), BuildOptions(row_tokens=1024))
        assert (found.template["name"], found.template["chat"][:3]) == ("chat", word)
        if word == "Beg":
            with pytest.raises(DataError, match="of other inputs or options"):
                build([tmp_path / "in.jsonl"], tmp_path / "Ask", str(tokenizer), BuildOptions(row_tokens=1024))


def test_show_marks_the_changed_tokens(seed_shards, capsys):
    assert main(["show", str(seed_shards["trimmed"]), "-n", "2"]) == 0
    plain = capsys.readouterr().out
    assert plain.count("### Security Thought:") == 2
    assert "«" in plain and "\x1b" not in plain
    assert main(["show", str(seed_shards["untrimmed"]), "-n", "1", "--color", "always", "--split", "heldout"]) == 0
    assert "\x1b[30;42m" in capsys.readouterr().out


def test_command_line_errors_are_one_line(tmp_path, capsys):
    assert main(["build", str(tmp_path / "none.jsonl"), "--train-tokenizer", "300", "--out", str(tmp_path / "o")]) == 2
    assert capsys.readouterr().err.splitlines() == [f"lpo-data: error: {tmp_path / 'none.jsonl'}: no such file"]
    assert main(["show", str(tmp_path)]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen", "codellama"])
def test_real_rows_with_real_tokenizers(shared_data, tmp_path, name, capsys):
    tok = str(shared_data / "tokenizers" / name)
    for file, rows in (("safecoder/sec-new-desc.train.jsonl", 420), ("sven/train.python.jsonl", 342)):
        out = tmp_path / file.split("/")[0]
        assert main(["build", str(shared_data / file), "--tokenizer", tok, "--out", str(out), "--row-tokens", "16384"]) == 0
        manifest = Manifest.load(out)
        assert sum(s["pairs"] for s in manifest.splits.values()) + sum(manifest.drops.values()) == rows
        assert set(manifest.drops) <= {"both sides are equal"}


@pytest.mark.parametrize("name", ["tokenizer/model.safetensors", "tokenizer/tokenizer.json", "mine.tfrecord", "notes.tmp", "tokenizer"])
@pytest.mark.parametrize("built", [False, True])
def test_a_build_takes_away_nothing_that_no_build_wrote(tmp_path, name, built):
    file = tmp_path / "out" / name
    if built:
        small_build(tmp_path, n=4)
        if name.startswith("tokenizer"):
            shutil.rmtree(tmp_path / "out" / "tokenizer")
        (tmp_path / "out" / "manifest.json").unlink()
    file.parent.mkdir(parents=True, exist_ok=True)
    if name == "tokenizer":
        file.symlink_to(tmp_path)
    else:
        file.write_text("mine")
    if built and name == "tokenizer/tokenizer.json":
        small_build(tmp_path, n=4)  # a build that was stopped is begun anew
        return
    with pytest.raises(DataError, match=rf"holds {name.split('/')[0]}, which no build wrote"):
        small_build(tmp_path, n=4)
    assert file.exists()


def test_plain_rows_are_counted_and_scored_whole(tmp_path, capsys):
    rows = [{"instruction": f"Print {n}.", "output": f"print({n})"} for n in range(20)]
    (tmp_path / "plain.jsonl").write_text("\n".join(map(json.dumps, rows)))
    args = ["build", str(tmp_path / "plain.jsonl"), "--train-tokenizer", "300", "--row-tokens", "128", "--out", str(tmp_path / "out")]
    assert main(args) == 0
    assert "20 of them are plain" in capsys.readouterr().out
    feed = Feed(tmp_path / "out")
    assert feed.manifest.plain == sum(split["pairs"] for split in feed.manifest.splits.values()) == 20
    batch = next(feed.batches(1, 0, 1))
    scored = batch.pair[0] >= 0
    assert not batch.side[0][scored].any() and not batch.changed[0].any() and batch.answer[0][scored].all()
    assert scored.sum() == batch.chosen_len[0].sum() + batch.reasoning_len[0].sum()  # the newline in front counts as reasoning
    assert main(["show", str(tmp_path / "out"), "-n", "1"]) == 0
    assert "### Response:\nprint(" in capsys.readouterr().out


def test_balancing_tops_up_the_train_split_only(tmp_path):
    """Every CWE ends with the least number at least, pairs that are there stay, the held-out split is untouched, and it is reproducible."""
    rows = list(pairs.read(SEED_PAIRS, Drops()))[:60]
    pairs.write(rows, tmp_path / "in.jsonl")
    cwe = {pair.id: pair.cwe for pair in rows}

    def ids(name, **options):
        build([tmp_path / "in.jsonl"], tmp_path / name, None, BuildOptions(heldout=0.2, **options), vocab_size=400)
        feed = Feed(tmp_path / name)
        return feed.manifest, [[i for row in range(feed.rows(split)) for i in feed.pair_ids(split, row)] for split in ("train", "heldout")]

    _, (plain, heldout) = ids("plain")
    before = Counter(cwe[i] for i in plain)
    least = sorted(before.values())[len(before) // 2]
    manifest, (train, same_heldout) = ids("balanced", balance_cwe=least)
    after = Counter(cwe[i] for i in train)
    assert same_heldout == heldout
    assert not Counter(plain) - Counter(train), "originals stay"
    assert after == {name: max(count, least) for name, count in before.items()} and after != before
    assert manifest.balanced == {name: least - count for name, count in sorted(before.items()) if count < least}
    assert manifest.splits["train"]["pairs"] == len(train)
    assert (ids("again", balance_cwe=least)[1], ids("other", balance_cwe=least, seed=1)[1] == [train, heldout]) == ([train, heldout], False)


def test_draws_of_a_cwe_do_not_depend_on_the_others():
    first = draws(["CWE-1", "CWE-2", "CWE-2", ""], 5, seed=3)
    assert first[:4] == [0] * 4 and len(first) == 7 and set(first[4:]) <= {1, 2}
    assert [at - 3 for at in draws(["", "", "", "CWE-1", "CWE-2", "CWE-2", "CWE-2"], 1, seed=3)] == []
    assert draws(["CWE-2", "CWE-2"], 5, seed=3) == [at - 1 for at in first[4:]]
