"""Directories and files have one writer, and a writer that is killed leaves nothing to unlock."""

import logging
import signal
import subprocess
import sys

import pytest

from foundation.errors import DataError
from foundation.files import differing, foreign, hold, hold_directory, kept, read_journal, read_json, sampled_sha256, shipped, write_json
from tests.helpers.paths import REPO

HOLD = "import sys\nfrom pathlib import Path\nfrom foundation.files import hold\nwith hold(Path(sys.argv[1])):\n    print('held', flush=True)\n    input()\n"


@pytest.fixture
def start():
    """Starts a process that holds a path."""
    started = []

    def other(path):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPO
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield other
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", ["directory", "directory/file.jsonl", "new/file.jsonl"])
@pytest.mark.parametrize("end", ["killed", "done"])
def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path, start, name, end):
    (tmp_path / "directory").mkdir()
    path = tmp_path / name
    first = start(path)
    with pytest.raises(DataError, match=rf"{path}: another process is writing to it \(process {first.pid} on ") as error, hold(path):
        pass
    assert "\n" not in str(error.value)
    if end == "killed":
        first.send_signal(signal.SIGKILL)
    else:
        first.stdin.write("\n")
        first.stdin.flush()
    first.wait()
    with hold(path), pytest.raises(DataError, match="another process"), hold(path):
        pass
    assert not list(tmp_path.rglob("*.lock"))


def test_the_lock_of_another_machine_is_waited_for(tmp_path, start):
    start(tmp_path)
    (tmp_path / ".lock").write_text("process 1 on elsewhere\nanother")
    with pytest.raises(DataError, match="process 1 on elsewhere"), hold(tmp_path, patience_s=0.5):
        pass
    assert foreign(tmp_path) == []
    (tmp_path / "b").touch()
    (tmp_path / "a").touch()
    assert foreign(tmp_path) == ["a", "b"] and foreign(tmp_path, ["a"]) == ["b"] and foreign(tmp_path / "none") == []


def test_a_cache_that_is_damaged_or_cannot_be_written_costs_only_time(tmp_path, caplog):
    made = []

    def make():
        made.append(1)
        return {"a": len(made)}

    file = tmp_path / "c" / "x.json"
    assert [kept(file, read_json, make, write_json) for _ in range(2)] == [{"a": 1}] * 2
    file.write_text('{"a":')
    assert [kept(file, read_json, make, write_json) for _ in range(2)] == [{"a": 2}] * 2
    assert "damaged" in caplog.text
    assert kept(file / "no" / "y.json", read_json, make, write_json) == {"a": 3}
    assert "can't be kept (Not a directory)" in caplog.text or "can't be kept (File exists)" in caplog.text


def test_what_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="can't be written"), hold(tmp_path / "file" / "x"):
        pass


@pytest.mark.parametrize(
    "line", ["[1]", "5", "null", "[" * 100_000, '{"id": "a"}', '{"id": ["a"], "sample": 0}', '{"id": "a", "sample": true}', "\udcff"]
)
def test_a_line_of_a_journal_that_is_no_row_of_it_is_named(tmp_path, line):
    (tmp_path / "j.jsonl").write_bytes(f'{{"id": "a", "sample": 0}}\n{line}\n'.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=r"j\.jsonl: line 2 is damaged; remove it"):
        read_journal(tmp_path / "j.jsonl", {"id": str, "sample": int})


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_damaged_facts_of_a_directory_are_named(tmp_path, text):
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(DataError, match=r"job\.json.*damaged JSON .*name another place"):
        differing(tmp_path / "job.json", {"seed": 1})


@pytest.mark.parametrize("size", [0, 100, 10_000, 1 << 20])
def test_a_file_changed_anywhere_at_large_is_another(tmp_path, size):
    file, content = tmp_path / "x.safetensors", bytes(range(256)) * (size // 256 + 1)
    file.write_bytes(content[:size])
    before = sampled_sha256([file])
    file.write_bytes(content[:size])
    assert sampled_sha256([file]) == before
    for changed in (content[: size + 1], bytes(b ^ 1 for b in content[:size])):
        file.write_bytes(changed)
        assert (sampled_sha256([file]) == before) == (changed == content[:size])


@pytest.mark.parametrize(
    "name", ["configs/tiny_cpu.yaml", "data_pipeline/seed/pairs.jsonl", "data_pipeline/seed/checks", "evaluation/examples/own.jsonl"]
)
def test_what_is_shipped_is_found_from_anywhere(name, tmp_path, monkeypatch, caplog):
    """But what lies in the working directory goes first, and nothing else is looked for elsewhere."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    assert shipped(name) == REPO / name and f"{name}: as lpo-jax ships it" in caplog.text
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("mine")
    assert shipped(name).absolute() == tmp_path / name
    for other in ("configs/none.yaml", "pyproject.toml", "lpo_jax/plan/prices.yaml", str(tmp_path / "configs" / "none.yaml")):
        assert str(shipped(other)) == other


def test_a_directory_in_which_nothing_was_done_is_taken_away(tmp_path):
    def fail(directory, file=None):
        with hold_directory(directory):
            if file is not None:
                (directory / file).touch()
            raise DataError("wrong")

    (tmp_path / "old").mkdir()
    for name, file in (("old", None), ("new/er", None), ("used", "file")):
        with pytest.raises(DataError, match="wrong"):
            fail(tmp_path / name, file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old", "used"] and not (tmp_path / "new" / "er").exists()
