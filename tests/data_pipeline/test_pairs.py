"""Readers: every format, every reason to drop a row, every clear error."""

import csv
import json

import pytest

from data_pipeline import pairs, template
from data_pipeline.pairs import DataError, Pair
from data_pipeline.template import alpaca
from tests.helpers.reading import read_pairs


def render(pair):
    return template.render(pair, alpaca(), None)


def test_own_format_round_trip(tmp_path):
    written = [
        Pair("a", "f()", "g()", "Do é.", "Because.", "CWE-89", group="c1", chosen_spans=((0, 1),), rejected_spans=()),
        Pair("b", "x\n", "y\n", language="c"),
    ]
    pairs.write(written, tmp_path / "p.jsonl")
    found, drops = read_pairs(tmp_path / "p.jsonl")
    assert found == written
    assert drops.rows == []


def test_disco_csv(tmp_path):
    with open(tmp_path / "d.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "Secure Code", "Vulnerable Code", "Instruction", "Reasoning"])
        writer.writerow([0, "safe(\n)", "unsafe(\n)", " Write, it. ", "R"])
        writer.writerow([1, "same", "same ", "I", "R"])
    found, drops = read_pairs(tmp_path / "d.csv")
    assert found == [Pair("d.csv:1", "safe(\n)", "unsafe(\n)", "Write, it.", "R")]
    assert drops.rows == [("d.csv:2", "both sides are equal")]


def test_sven_jsonl(tmp_path):
    row = {
        "func_src_before": "a(b)", "func_src_after": "a(c)", "file_name": "x/y.js", "vul_type": "cwe-079", "commit_link": "l",
        "char_changes": {"deleted": [{"char_start": 2, "char_end": 3, "chars": "b"}], "added": [{"char_start": 2, "char_end": 3, "chars": "c"}]},
    }  # fmt: skip
    (tmp_path / "s.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"description": "Do.", "char_changes": None}) + "\n")
    found, _ = read_pairs(tmp_path / "s.jsonl")
    common = {"chosen": "a(c)", "rejected": "a(b)", "cwe": "CWE-79", "language": "javascript", "group": "l"}
    assert found == [
        Pair("s.jsonl:1", **common, chosen_spans=((2, 3),), rejected_spans=((2, 3),)),
        Pair("s.jsonl:2", **common, instruction="Do."),
    ]


def test_bad_rows_are_counted_by_reason(tmp_path):
    good = {"chosen": "a", "rejected": "b"}
    lines = [
        json.dumps(good),
        "{oops",
        "[1]",
        json.dumps(good | {"chosen": " "}),
        json.dumps(good | {"chosen": 3}),
        "",
        json.dumps(good | {"rejected": "a\n"}),
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    found, drops = read_pairs(tmp_path / "p.jsonl")
    assert [p.id for p in found] == ["p.jsonl:1"]
    assert [row for row, _ in drops.rows] == ["p.jsonl:2", "p.jsonl:3", "p.jsonl:4", "p.jsonl:5", "p.jsonl:7"]
    assert drops.counts()["both sides are equal"] == drops.counts()["empty code"] == drops.counts()["not a JSON object"] == 1


def test_unknown_columns_missing_file_and_encoding(tmp_path):
    (tmp_path / "u.jsonl").write_text('{"before": 1}\n')
    with pytest.raises(DataError, match=r"u\.jsonl row 1: columns before fit no known format .*chosen, rejected"):
        read_pairs(tmp_path / "u.jsonl")
    with pytest.raises(DataError, match="no such file"):
        read_pairs(tmp_path / "none.jsonl")
    (tmp_path / "l.jsonl").write_bytes('{"chosen": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match="neither UTF-8 nor UTF-16"):
        read_pairs(tmp_path / "l.jsonl")


def test_every_real_row_is_read(shared_data):
    for file, rows, dropped in (("safecoder/sec-new-desc.train.jsonl", 420, 1), ("sven/train.python.jsonl", 342, 0)):
        found, drops = read_pairs(shared_data / file)
        assert (len(found) + len(drops.rows), len(drops.rows)) == (rows, dropped)
    assert all(p.chosen_spans is not None for p in found)


def test_template():
    text = render(Pair("a", "safe()", "unsafe()", "Do it.", "It may break."))
    assert text.prompt == template.prompt(alpaca(), "Do it.", None) and text.prompt.text.endswith(
        "\n\n### Instruction:\nDo it.\n\n### Security Thought:"
    )
    assert text.answer(text.chosen) == "\nIt may break.\n\n### Response:\n```python\nsafe()\n```"
    bare = render(Pair("a", "safe()", "unsafe()", "Do it.", language="ruby"))
    assert bare.prompt.text.endswith("### Response:") and bare.before_code == "\n```ruby\n"


def test_a_pair_without_instruction_is_a_completion_task():
    text = render(Pair("a", "def f():\n    x\n    good()\n", "def f():\n    x\n    bad()\n"))
    assert (text.prompt.text, text.before_code, text.chosen, text.rejected, text.after_code) == (
        "def f():\n    x\n",
        "",
        "    good()\n",
        "    bad()\n",
        "",
    )
    assert render(Pair("a", "good()", "bad()")).prompt.text == ""


def test_plain_rows(tmp_path):
    lines = [
        {"instruction": "Add.", "output": "a + b\n"},
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        {"instruction": "Add.", "input": "", "response": "a + b"},
        {"prompt": " Add. ", "response": "a + b"},
        {"instruction": " ", "output": "x"},
        {"instruction": "Add.", "output": "\n"},
        {"instruction": "Add.", "output": None},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found, drops = read_pairs(tmp_path / "p.jsonl")
    assert [(p.instruction, p.chosen) for p in found] == [
        ("Add.", "a + b\n"), ("Add.\n\n### Input:\n1, 2", "3"), ("Add.", "a + b"), ("Add.", "a + b")
    ]  # fmt: skip
    assert all(p.plain for p in found)
    assert [row for row, _ in drops.rows] == ["p.jsonl:5", "p.jsonl:6", "p.jsonl:7"]
    text = render(found[1])
    assert text.prompt.text.endswith("### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:")
    assert (text.answer(text.chosen), text.rejected) == ("\n3", text.chosen)
