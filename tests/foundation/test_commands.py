"""Commands: their numbers have bounds, and an error is one line that steers no terminal and shows no key."""

import argparse
import os

import pytest

import lpo_jax
from foundation.commands import Program, new_directory, new_file, new_page, number, whole
from foundation.errors import DataError, UserError, run_command


@pytest.mark.parametrize(
    ("kind", "fine", "wrong"),
    [
        (whole(1), ["1", "2147483647", " 7 "], ["0", "-1", "1.5", "x", "", "1e3", "2147483648", "9" * 5000]),
        (whole(0, 10), ["0", "10"], ["11", "-1", "nan"]),
        (number(), ["0", "1e9", "0.5"], ["-1", "nan", "inf", "-inf", "1e999", "x", ""]),
        (number(most=1, above=True), ["1", "0.001"], ["0", "1.001", "-0"]),
    ],
)
def test_numbers_have_bounds(kind, fine, wrong):
    assert all(kind(text) == float(text) for text in fine)
    for text in wrong:
        with pytest.raises(argparse.ArgumentTypeError):
            kind(text)


def test_an_argument_that_cannot_be_is_one_line(capsys):
    program = Program("lpo-test", "A test.")
    program.command("go", "go", "Go.", lambda args: 0).add_argument("--times", type=whole(1))
    for words, said in ((["go", "--times", "0"], "argument --times: 0 must lie in"), (["stop"], "invalid choice"), ([], "required")):
        assert program.run(words) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and said in lines[0] and "--help` explains" in lines[0]
    assert program.run(["go", "--times", "3"]) == 0


def test_a_program_knows_its_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        Program("lpo-test", "A test.").run(["--version"])
    assert capsys.readouterr().out == f"lpo-test {lpo_jax.__version__}\n"


def test_what_may_have_been_meant_is_said(capsys):
    program = Program("lpo-test", "A test.")
    go = program.command("go", "go", "Go.", lambda args: 0)
    go.add_argument("--temperature", choices=("hot", "cold"))
    go.add_argument("--host", required=True)
    for words, said in (
        (["goo"], "did you mean 'go'?; `lpo-test --help`"),
        (["go", "--temprature=hot"], "did you mean '--temperature'?; `lpo-test go --help`"),
        (["go", "--host", "a", "--temperature", "colt"], "did you mean 'cold'?; `lpo-test go --help`"),
        (["go", "--host", "a", "fast"], "unrecognized arguments: fast; `lpo-test go --help`"),
        (["go", "--stop"], "unrecognized arguments: --stop; `lpo-test go --help`"),
        (["go", "--temp", "hot"], "unrecognized arguments: --temp: did you mean '--temperature'?; `lpo-test go --help`"),
        (["go", "--hots", "a"], "unrecognized arguments: --hots: did you mean '--host'?; `lpo-test go --help`"),
    ):
        assert program.run(words) == 2
        assert said in capsys.readouterr().err


def test_options_and_other_arguments_stand_in_any_order():
    program = Program("lpo-test", "A test.")
    go = program.command("go", "go", "Go.", lambda args: 0)
    go.add_argument("config")
    go.add_argument("settings", nargs="*")
    go.add_argument("-o", "--out", required=True)
    for words in (
        ["c", "a=1", "b=2", "-o", "x"],
        ["-o", "x", "c", "a=1", "b=2"],
        ["c", "-o", "x", "a=1", "b=2"],
        ["c", "a=1", "-o", "x", "b=2"],
    ):
        args = program.parse(["go", *words])
        assert (args.config, args.settings, args.out) == ("c", ["a=1", "b=2"], "x")
    for words, said in ((["c", "-o", "x", "a=1", "--fast"], "unrecognized arguments: --fast"), (["a=1"], "required: -o/--out")):
        with pytest.raises(UserError, match=said):
            program.parse(["go", *words])


def test_home_is_found_where_no_shell_looks_for_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    program, seen = Program("lpo-test", "A test."), list[object]()
    go = program.command("go", "go", "Go.", lambda args: seen.extend((args.model, args.words)) or 0)
    go.add_argument("--model")
    go.add_argument("words", nargs="*")
    assert program.run(["go", "--model=~/x", "a.b=~/c", "~/d", "x~/y", "~e/f"]) == 0
    assert seen == ["/home/me/x", ["a.b=/home/me/c", "/home/me/d", "x~/y", "~e/f"]]


def test_an_error_steers_no_terminal_and_shows_no_key(monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", " sk-secret \n")

    def fail():
        raise DataError("a\x1b[31m\u202eb: key sk-secret is wrong")

    assert run_command("lpo-test", fail) == 2
    assert capsys.readouterr().err == "lpo-test: error: a\u241b[31m\\u202eb: key *** is wrong\n"


def test_what_is_written_takes_no_place_of_anything_else(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place, said in ((tmp_path, "a directory"), (tmp_path / "pipe", "a device or a pipe"), ("/dev/null", "a device or a pipe")):
        with pytest.raises(argparse.ArgumentTypeError, match=f"{place} is {said}; name a file"):
            new_file(str(place))
    with pytest.raises(argparse.ArgumentTypeError, match="new/ is a directory; name a file"):
        new_file(f"{tmp_path}/new/")
    with pytest.raises(argparse.ArgumentTypeError, match=f"no/new.html: there is no directory {tmp_path}/no; make it, or name another"):
        new_page(f"{tmp_path}/no/new.html")
    assert new_directory(f"{tmp_path}/no/new/") == tmp_path / "no/new" and not (tmp_path / "no").exists()
    for kind in (new_file, new_page, new_directory):
        with pytest.raises(argparse.ArgumentTypeError, match="'' is no name: say where to"):
            kind("")
        with pytest.raises(argparse.ArgumentTypeError, match="isn't UTF-8; choose another name"):
            kind(os.fsdecode(b"a\xff"))
    page, pairs, empty = tmp_path / "page.html", tmp_path / "pairs.jsonl", tmp_path / "empty.html"
    page.write_text("<!DOCTYPE html>\n")
    pairs.write_text("{}\n")
    empty.touch()
    assert [new_page(str(path)) for path in (page, empty, tmp_path / "new.html")] == [page, empty, tmp_path / "new.html"]
    with pytest.raises(argparse.ArgumentTypeError, match="holds something else than a page"):
        new_page(str(pairs))
