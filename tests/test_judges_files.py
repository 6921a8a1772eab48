"""`python -m judges`: a file is judged as Python would run it, whatever its encoding, or named as one that Python can't read."""

import pytest

from judges.__main__ import main

CODE = "import subprocess\n\ndef run(name):\n    subprocess.call('ls ' + name, shell=True)\n"


def judge(path, capsys):
    code = main([str(path), "--tools", "bandit"])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (CODE.encode(), 4),
        (b"\xef\xbb\xbf" + CODE.encode(), 4),
        (b"# -*- coding: latin-1 -*-\n# caf\xe9\n" + CODE.encode(), 6),
        (b"\x0c\n" + CODE.encode(), 5),
        ("x = 'a\u2028b\x85c\x1cd'\n".encode() + CODE.encode(), 5),
        (CODE.replace("\n", "\r\n").encode(), 4),
        (CODE.replace("\n", "\r").encode(), 4),
        (b"    def run(self, name):\n        subprocess.call('ls ' + name, shell=True)\n", 2),
        (CODE.rstrip().encode(), 4),
        (b"# vim: set fileencoding=utf-16-le :\n".replace(b"utf-16-le", b"cp1252") + "# \u20ac\n".encode("cp1252") + CODE.encode(), 6),
    ],
)
def test_a_file_is_judged_as_python_runs_it(tmp_path, capsys, content, line):
    (tmp_path / "a.py").write_bytes(content)
    code, out, err = judge(tmp_path / "a.py", capsys)
    assert code == 1 and "error" not in err
    assert f"a.py:{line}: high CWE-78 [bandit B602]" in out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"# \xe9\n" + CODE.encode(), "Python can't read it"),
        (b"# coding: nothing-like-it\n" + CODE.encode(), "Python can't read it (unknown encoding: nothing-like-it"),
        (CODE.encode("utf-16"), "Python can't read it"),
        (b"# coding: utf-8\n# \xff\n", "Python can't read it"),
    ],
)
def test_what_python_cannot_read_is_named(tmp_path, capsys, content, said):
    (tmp_path / "a.py").write_bytes(content)
    code, out, err = judge(tmp_path / "a.py", capsys)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert f"{tmp_path}/a.py: {said}" in err and "save it as UTF-8" in err


def test_a_file_that_is_none_is_named_with_the_remedy(tmp_path, capsys):
    for path in (tmp_path / "gone.py", tmp_path):
        code, out, err = judge(path, capsys)
        assert (code, out) == (2, "") and str(path) in err and "give files of Python code" in err
    (tmp_path / "bad.py").write_text("def f(:\n")
    assert judge(tmp_path / "bad.py", capsys)[1] == f"{tmp_path}/bad.py: not Python (as this Python reads it)\n"
    (tmp_path / "empty.py").write_text("")
    assert judge(tmp_path / "empty.py", capsys)[:2] == (0, "")
