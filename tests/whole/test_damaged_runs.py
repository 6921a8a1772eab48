"""Shard sets and run directories whose descriptions are damaged: one line that names the file and the remedy."""

import json
import shutil

import pytest

from data_pipeline import cli as lpo_data
from data_pipeline.shards import Manifest
from lpo_jax import cli as lpo
from lpo_jax import config
from tests.helpers import damage
from tests.helpers.paths import REPO, SEED_PAIRS


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A shard set, and a run of it that hasn't trained."""
    out = tmp_path_factory.mktemp("sound")
    lines = SEED_PAIRS.read_text().split("\n")[:4]
    (out / "pairs.jsonl").write_text("\n".join(lines))
    built = ["build", str(out / "pairs.jsonl"), "--out", str(out / "shards"), "--train-tokenizer", "300", "--heldout", "0.3", "--near", "2"]
    assert lpo_data.main(built) == 0
    run = config.load(REPO / "configs" / "tiny_cpu.yaml", [f"data.path={out / 'shards'}", f"run_dir={out / 'run'}"])
    (out / "run").mkdir()
    (out / "run" / "config.json").write_text(json.dumps(config.to_dict(run)))
    shutil.copy(out / "shards" / "manifest.json", out / "run" / "data.json")
    return out


def one_line(program, words, capsys):
    capsys.readouterr()
    assert program.main([str(word) for word in words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].isprintable(), lines
    return lines[0]


def harms(file):
    """Of a manifest, or its copy in a run."""
    yield from ((what, damage.put(file, content)) for what, content in damage.ODD_JSON.items() if what not in ("a pipe",))
    yield from ((f"cut at {share}", damage.cut(file, share)) for share in (0.1, 0.6, 0.99))
    for key in ("format_version", "tokenizer_sha256", "vocab_size", "row_tokens", "row_pairs", "splits", "drops", "template", "masks"):
        for value in (-1, 2.5, 10**400, None, "x", [7], {"train": 7}, {"\n\x1b[31m": {}}):
            yield f"{key} is {str(value)[:20]}", damage.edit_json(file, damage.set_to(key, value))
    for key, value in (
        ("shards", 7),
        ("shards", [{}]),
        ("shards", [{"file": "../x", "rows": 1, "sha256": ""}]),
        ("rows", -1),
        ("pairs", "x"),
    ):
        yield f"train's {key} is {value}", damage.edit_json(file, damage.set_to("splits", "train", key, value))
    yield "a split is gone", damage.edit_json(file, lambda raw: raw["splits"].pop("heldout") and None)
    yield "one key too many", damage.edit_json(file, damage.set_to("evil", 1))


FINE = {"drops is {'train': 7}", "masks is {'train': 7}", "masks is {'\\n\\x1b[31m': {}}"}
"""What those fields may hold, as far as a reader of the set can tell."""


def test_a_damaged_manifest(sound, tmp_path, capsys):
    wrong = {}
    for name, harm in harms("manifest.json"):
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        shutil.copytree(sound / "shards", tmp_path / "set")
        harm(tmp_path / "set")
        try:
            said = one_line(lpo_data, ["show", tmp_path / "set"], capsys)
        except Exception as error:
            wrong[name] = f"{type(error).__name__}: {error}"
            continue
        except AssertionError:
            said = "nothing"
        if f"{tmp_path}/set/manifest.json" not in said or "lpo-data build" not in said:
            wrong[name] = said
    assert wrong.keys() <= FINE, wrong


def test_a_damaged_run(sound, tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('{"instruction": "x"}\n')
    generate = ["generate", tmp_path / "p.jsonl", "-o", tmp_path / "o.jsonl", "--model"]
    assert "no checkpoint; run `lpo train` first" in one_line(lpo, [*generate, sound / "run", "--max-new-tokens", "2"], capsys)
    wrong = {}
    for file in ("data.json", "config.json"):
        cases = harms(file) if file == "data.json" else ((what, damage.put(file, content)) for what, content in damage.ODD_JSON.items())
        more = [(f"seed is {value}", damage.edit_json(file, damage.set_to("seed", value))) for value in ("x", -1, None, {})]
        for name, harm in [*cases, *(more if file == "config.json" else [])]:
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            shutil.copytree(sound / "run", tmp_path / "run")
            harm(tmp_path / "run")
            try:
                said = one_line(lpo, [*generate, tmp_path / "run", "--max-new-tokens", "2"], capsys)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
            if f"{tmp_path}/run/{file}" not in said and not (name in FINE and "no checkpoint" in said) and "another tokenizer" not in said:
                wrong[f"{file}: {name}"] = said
    assert wrong == {}


def test_what_is_no_shard_set_or_file_of_pairs(sound, tmp_path, capsys):
    """Each command says what it was given, and what it wants."""
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    for words, said in (
        (["show", tmp_path], "manifest.json: no such file; build the set with `lpo-data build`"),
        (["show", sound / "run"], "manifest.json: no such file"),
        (["show", tmp_path, "--drops"], "dropped.tsv: No such file"),
        (["check", tmp_path / "empty.jsonl"], "empty.jsonl: no row in it"),
        (["check", tmp_path / "blank.jsonl"], "blank.jsonl: no row in it"),
        (["check", tmp_path / "gone.jsonl"], "gone.jsonl"),
        (["stats", tmp_path / "empty.jsonl"], "empty.jsonl: holds no pairs"),
        (["stats", tmp_path], "name a job of `lpo-data distill` or a file of pairs"),
        (["stats", sound / "run"], "a run of `lpo train`"),
        (["stats", sound / "shards"], "a shard set: `lpo-data show` prints it"),
        (["stats", tmp_path / "gone"], "gone"),
    ):
        assert said in one_line(lpo_data, words, capsys), words
    assert Manifest.load(sound / "shards").splits["train"]["pairs"] > 0


def test_what_commands_print_steers_no_terminal(sound, tmp_path, capsys):
    hostile = {"id": "e\x1b[2J", "instruction": "Do \x1b]0;mine\x07 it.", "reasoning": "R\u202e", "cwe": "CWE-89"}
    rows = [{"chosen": "s = 1\nsafe('\x1b[2J')\n", "rejected": "s = 1\nbad('\x1b[2J')\n"}, {"chosen": "x", "rejected": "x"}, {"chosen": "f(\0)", "rejected": "(" * 9999}]  # fmt: skip
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(hostile | row | {"id": f"{n}\x1b[2J"}) + "\n" for n, row in enumerate(rows)))
    build = ["build", tmp_path / "p.jsonl", "--out", tmp_path / "out", "--tokenizer", sound / "shards" / "tokenizer", "--heldout", "0"]
    lpo_data.main([str(word) for word in build])
    for words in (["show", tmp_path / "out"], ["show", tmp_path / "out", "--drops"], ["check", tmp_path / "p.jsonl"], ["stats", tmp_path / "p.jsonl"]):  # fmt: skip
        capsys.readouterr()
        lpo_data.main([str(word) for word in words])
        said = capsys.readouterr()
        assert said.out and not set("\x1b\x07\x00\u202e") & set(said.out + said.err), words
