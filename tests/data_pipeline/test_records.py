"""Files as people have them: marks, line breaks, encodings, containers; and every row ends as a pair, a counted drop or a named error."""

import csv
import gzip
import io
import json
import os
from dataclasses import replace

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from data_pipeline import formats, pairs, records
from data_pipeline.pairs import Pair
from foundation.errors import DataError
from tests.helpers.reading import read_pairs

ROWS = [
    {"id": str(n), "chosen": f"safe({n})\n", "rejected": f"bad({n})\n", "instruction": f"Zeile\u2028{n}\x85é", "cwe": "CWE-79"}
    for n in range(3)
]
PAIRS = [Pair(**row) for row in ROWS]


def lines(rows=ROWS, end="\n"):
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


def table(delimiter=",", end="\n"):
    text = io.StringIO()
    writer = csv.DictWriter(text, ROWS[0], delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue()


CONTENTS = {
    "plain.jsonl": lines().encode(),
    "mark.jsonl": lines().encode("utf-8-sig"),
    "windows.jsonl": lines(end="\r\n").encode(),
    "mac.jsonl": lines(end="\r").encode(),
    "wide.jsonl": lines().encode("utf-16"),
    "wide_be.jsonl": b"\xfe\xff" + lines().encode("utf-16-be"),
    "blank_lines.jsonl": ("\n\n" + lines(end="\n \n")).encode(),
    "no_end.jsonl": lines().rstrip("\n").encode(),
    "packed.jsonl.gz": gzip.compress(lines().encode()),
    "array.json": json.dumps(ROWS, indent=1).encode(),
    "array_with_mark.json": json.dumps(ROWS).encode("utf-8-sig"),
    "table.csv": table().encode(),
    "excel.csv": table(end="\r\n").encode("utf-8-sig"),
    "german.csv": table(";").encode(),
    "tabs.tsv": table("\t").encode(),
    "misnamed.csv": lines().encode(),
    "misnamed.md": lines().encode(),
    "TABLE.CSV": table().encode(),
    "table.txt": table("\t").encode(),
    "table.csv.bak": table().encode(),
    "table": table().encode(),
    "packed.csv.gz": gzip.compress(table().encode()),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_whatever_it_comes_in_it_is_the_same(tmp_path, name):
    (tmp_path / name).write_bytes(CONTENTS[name])
    found, drops = read_pairs(tmp_path / name)
    assert (found, drops.rows) == (PAIRS, [])


def test_parquet_and_directories(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "p.parquet")
    assert read_pairs(tmp_path / "p.parquet")[0] == PAIRS
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert read_pairs(tmp_path / "saved")[0] == PAIRS
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "train.jsonl").write_bytes(CONTENTS["plain.jsonl"])
    assert read_pairs(tmp_path / "hub")[0] == PAIRS
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a.csv").write_text("instruction,chosen,rejected,reasoning\nNA,nan,null,None\n")
    (pair,), _ = read_pairs(tmp_path / "tables")
    assert (pair.instruction, pair.chosen, pair.rejected, pair.reasoning) == ("NA", "nan", "null", "None")
    assert records.facts(tmp_path / "saved")["sha256"] != records.facts(tmp_path / "hub")["sha256"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.jsonl", lines().encode("utf-8").replace("é".encode(), b"\xe9"), "neither UTF-8 nor UTF-16"),
        ("torn.jsonl.gz", gzip.compress(lines().encode())[:-9], "copy or download it again"),
        ("torn.parquet", b"PAR1" + bytes(40), "damaged Parquet"),
        ("torn.json", json.dumps(ROWS).encode()[:-3], "begins as a JSON array, and isn't one"),
        ("crooked.jsonl.gz", gzip.compress(lines().encode())[:20] + b"\xff" * 60, "copy or download it again"),
        ("twice.json", b'[{"chosen": "a", "rejected": "b", "chosen": "c"}]', r"has a key twice \(chosen\)"),
        ("twice.csv", b"chosen,rejected,chosen\n1,2,3\n", "has the column chosen twice"),
        ("README.md", b"# Pairs, and more\nchosen, rejected\n", r"files of rows end in \.jsonl, .*\.csv.*rename it"),
        ("notes.rst.gz", gzip.compress(b"Pairs\n"), "nor called a table"),
        ("typo.jsonl", b'{"choosen": "a", "rejected": "b"}\n', "is 'chosen' meant by 'choosen'"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,  # gzip's hold the time
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_pairs(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_key_that_is_there_twice_loses_nothing(tmp_path):
    (tmp_path / "p.jsonl").write_text(lines() + '{"chosen": "a", "rejected": "b", "chosen": "c"}\n')
    found, drops = read_pairs(tmp_path / "p.jsonl")
    assert (found, drops.rows) == (PAIRS, [("p.jsonl:4", "has a key twice (chosen)")])


def test_a_row_of_a_table_that_is_none_says_what_it_was_read_as(tmp_path):
    (tmp_path / "p.txt").write_text("chosen,rejected\na,b,c\na\n")
    found, drops = read_pairs(tmp_path / "p.txt")
    assert (found, drops.rows) == (
        [],
        [(f"p.txt:{row}", f"read as CSV, it has {what} cells than the header") for row, what in ((1, "more"), (2, "fewer"))],
    )


def test_what_parquet_can_hold_and_python_not_is_a_drop(tmp_path):
    odd = {
        "reasoning": pyarrow.array([b"Why.", b"\xff", None], pyarrow.binary()).view(pyarrow.string()),
        "when": pyarrow.array([0, 0, 2**62], pyarrow.timestamp("us")),
    }
    columns = pyarrow.Table.from_pylist(ROWS)
    for name, values in odd.items():
        columns = columns.append_column(name, values)
    pyarrow.parquet.write_table(columns, tmp_path / "p.parquet")
    found, drops = read_pairs(tmp_path / "p.parquet")
    assert (found, [row for row, _ in drops.rows]) == ([replace(PAIRS[0], reasoning="Why.")], ["p.parquet:2", "p.parquet:3"])
    assert drops.counts() == {"a value that Python can't hold": 2}
    pyarrow.parquet.write_table(columns.append_column("chosen", columns["rejected"]), tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="the column chosen is there twice"):
        read_pairs(tmp_path / "twice.parquet")


def test_a_name_that_is_no_text_is_told_on_one_line(tmp_path):
    path = tmp_path / os.fsdecode(b"a\xff\nb.jsonl")
    path.write_text('{"chosen": "a", "rejected": "b"}')
    (pair,), _ = read_pairs(path)
    assert pair.id == "a\\xff b.jsonl:1"
    assert records.facts(path)["file"] == "a\\xff b.jsonl"


def test_no_file_no_hub(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no such file"):
        read_pairs(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="`datasets` can't open it .*give a file instead"):
        read_pairs("somebody/nothing-of-the-kind")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"id": 7}, {"id": "7"}),
        ({"id": "one\ntwo\tthree"}, {"id": "one two three"}),
        ({"cwe": 89}, {"cwe": "CWE-89"}),
        ({"cwe": "cwe-089: SQL Injection"}, {"cwe": "CWE-89"}),
        ({"group": 3}, {"group": "3"}),
        ({"reasoning": ["First.", "Second."]}, {"reasoning": "First.\nSecond."}),
        ({"reasoning": None}, {"reasoning": ""}),
        ({"chosen": "\ufeffa\r\nb\rc"}, {"chosen": "a\nb\nc"}),
        ({"instruction": 5}, "instruction: a number, not text"),
        ({"instruction": {"a": 1}}, "instruction: an object, not text"),
        ({"chosen": "a\ud800"}, "chosen: half a surrogate (U+D800), which no text may hold"),
        ({"id": "a\udfff"}, "id: half a surrogate (U+DFFF), which no text may hold"),
        ({"chosen": "a\ufdd0"}, "chosen: a noncharacter (U+FDD0), which no text may hold"),
        ({"chosen": True}, "chosen: a truth value, not text"),
        ({"chosen_spans": [[0, 99]], "rejected_spans": []}, "chosen_spans: a span beyond the code's 2 characters"),
    ],
)
def test_fields_are_converted_or_named(tmp_path, given, expected):
    row = {"id": "x", "chosen": "a\n", "rejected": "b\n", "instruction": "Do."} | given
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(ROWS[0]))
    found, drops = read_pairs(tmp_path / "p.jsonl")
    if isinstance(expected, str):
        assert (found, drops.rows) == ([PAIRS[0]], [("p.jsonl:1", expected)])
    else:
        assert {name: getattr(found[0], name) for name in expected} == expected and not drops.rows


def test_spans_follow_line_breaks(tmp_path):
    row = {"chosen": "a\r\nxy\r\n", "rejected": "a\r\nz\r\n", "chosen_spans": [[3, 5]], "rejected_spans": [[3, 4]]}
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    (pair,), _ = read_pairs(tmp_path / "p.jsonl")
    assert [pair.chosen[slice(*span)] for span in pair.chosen_spans] == ["xy"]
    assert [pair.rejected[slice(*span)] for span in pair.rejected_spans] == ["z"]


GOOD, BAD = "def f(x):\n    return safe(x)\n", "def f(x):\n    return x\n"
USER, SAID = {"role": "user", "content": "Do."}, lambda text: {"role": "assistant", "content": text}
ASKED = {"instruction": "Do."}
SHAPES = {
    "TRL": ({"prompt": "Do.", "chosen": GOOD, "rejected": BAD}, ASKED),
    "TRL, messages": ({"prompt": [USER], "chosen": [SAID(GOOD)], "rejected": [SAID(BAD)]}, ASKED),
    "TRL, implicit": ({"chosen": [USER, SAID(GOOD)], "rejected": [USER, SAID(BAD)]}, ASKED),
    "Orca": ({"system": "Be.", "question": "Do.", "chosen": GOOD, "rejected": BAD}, ASKED | {"history": (("system", "Be."),)}),
    "LLaMA-Factory": (
        {"instruction": "Do.", "input": "1", "history": [["q", "a"]], "chosen": GOOD, "rejected": BAD},
        {"instruction": "Do.\n\n### Input:\n1", "history": (("user", "q"), ("assistant", "a"))},
    ),
    "ShareGPT": (
        {
            "conversations": [{"from": "human", "value": "Do."}],
            "chosen": {"from": "gpt", "value": GOOD},
            "rejected": {"from": "gpt", "value": BAD},
        },
        ASKED,
    ),
    "SecCodePLT": (
        {
            "id": 5,
            "cwe": "89",
            "prompt": "Do.",
            "ground_truth": {"code_before": "", "patched_code": GOOD, "vulnerable_code": BAD, "code_after": ""},
        },
        ASKED | {"id": "5", "cwe": "CWE-89"},
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_preference_pairs_of_others(tmp_path, shape):
    row, expected = SHAPES[shape]
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    (pair,), drops = read_pairs(tmp_path / "p.jsonl")
    assert (pair.chosen, pair.rejected, pair.code, drops.unused["p.jsonl"]) == (GOOD, BAD, True, {})
    assert {name: getattr(pair, name) for name in expected} == expected


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, SAID("Yes.")]},
        {"conversations": [{"from": "human", "value": "Do."}, {"from": "gpt", "value": "Yes."}]},
        {"prompt": "Do.", "completion": "Yes."},
    ],
)
def test_plain_conversations(tmp_path, row):
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    (pair,), _ = read_pairs(tmp_path / "p.jsonl")
    assert pair.plain and (pair.instruction, pair.chosen, pair.code) == ("Do.", "Yes.", False)


def test_code_is_taken_out_of_fences_and_said_so(tmp_path):
    fenced = [f"Quote it.\n\n```py\n{code}```" for code in (GOOD, BAD)]
    rows = [
        {"prompt": "Do.", "chosen": fenced[0], "rejected": fenced[1]},
        {"prompt": "Do.", "chosen": fenced[0], "rejected": f"Or so:\n{fenced[1]}"},
        {"instruction": "Do.", "input": "", "chosen": fenced[0], "rejected": fenced[1]},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (taken, whole, factory), drops = read_pairs(tmp_path / "p.jsonl")
    assert replace(factory, id=taken.id) == taken
    assert (taken.chosen + "\n", taken.reasoning, taken.language, taken.code) == (GOOD, "Quote it.", "py", True)
    assert (whole.chosen, whole.code) == (fenced[0], False)
    assert drops.notes == {formats.NOTE: 2}


def test_columns_that_nothing_reads_are_named(tmp_path, caplog):
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row | {"reasonning": "Why.", "extra": None}) + "\n" for row in ROWS))
    _, drops = read_pairs(tmp_path / "p.jsonl")
    assert drops.unused == {"p.jsonl": {"reasonning": 3}}
    assert "nothing reads the columns reasonning (3 rows; is reasoning meant?)" in caplog.text


def test_cosmetic_pairs():
    for chosen, rejected, is_so in (
        ("x = 1  # safe\n", "x = 1\n", True),
        ("x  =  1\n", "x = 1\n", True),
        ("if a:\n  b()\n", "if a:\n    b()\n", True),
        ("x = '# safe'\n", "x = '# bad'\n", False),
        ("a(b)\n", "a(c)\n", False),
    ):
        assert pairs.cosmetic(Pair("a", chosen, rejected)) == is_so
    assert pairs.cosmetic(Pair("a", "a( b )", "a(b)", language="c")) and not pairs.cosmetic(Pair("a", "a()", "a()", code=False))


@pytest.mark.parametrize("history", [(("system", "Be brief."),), (("user", "Hi."), ("assistant", "Yes?"))])
def test_what_was_said_before_survives_writing(tmp_path, history):
    pair = Pair("a", "x = 1", "x = 2", "Do.", history=history)
    pairs.write([pair], tmp_path / "p.jsonl")
    assert read_pairs(tmp_path / "p.jsonl")[0] == [pair]


TEXTS = st.text(max_size=8) | st.sampled_from(
    ["x = 1\n", "def f():\n    pass\n", "```py\nx\n```", "\ud800", "a\r\nb", "CWE-1", "\x00", "\u2028"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "text"]) | TEXTS, inner, max_size=3)
    ),
    max_leaves=6,
)
COLUMNS = sorted(frozenset[str]().union(*(form.columns | form.more for form in formats.FORMATS))) + ["other", ""]


@settings(max_examples=400)
@given(
    st.sampled_from(formats.FORMATS),
    st.lists(st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=4), min_size=1, max_size=4),
    st.data(),
)
def test_every_row_ends_as_a_pair_a_drop_or_an_error(tmp_path_factory, form, rows, data):
    rows = [{name: data.draw(TEXTS | VALUES) for name in sorted(form.columns)} | row for row in rows]
    path = tmp_path_factory.mktemp("rows") / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        found, drops = read_pairs(path)
    except DataError as error:
        event(str(error).partition(": ")[2][:30])
        return
    assert len(found) + len(drops.rows) == len(rows)
    for pair in found:
        pairs.write([pair], path)
        again, _ = read_pairs(path)
        assert again == [pair]
