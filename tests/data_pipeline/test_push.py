"""Pairs on the hub: pushed, read back the same; what isn't pairs stays here."""

import json
import shutil
import subprocess
import sys

import pytest

from data_pipeline import pairs, push
from data_pipeline.pairs import Drops
from foundation.errors import DataError
from tests.helpers.hub import OWNER, TOKEN, hub
from tests.helpers.paths import REPO, SEED_PAIRS


def test_a_file_of_pairs_comes_back_as_it_went(tmp_path):
    shutil.copy(SEED_PAIRS, tmp_path / "pairs.jsonl")
    code = f"""if True:
        import sys
        from data_pipeline import cli, pairs
        assert cli.main(["push", {str(tmp_path / "pairs.jsonl")!r}, "{OWNER}/seed", "--private", "--license", "cc-by-4.0"]) == 0
        pairs.write(list(pairs.read("hf://{OWNER}/seed", pairs.Drops())), {str(tmp_path / "back.jsonl")!r})
    """
    with hub() as server:
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, env=server.environment(tmp_path / "home"), cwd=REPO, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        repo = server.repos["dataset", f"{OWNER}/seed"]
    sent = list(pairs.read(SEED_PAIRS, Drops()))
    assert f"{OWNER}/seed: {len(sent)} pairs" in done.stdout and TOKEN not in done.stdout + done.stderr
    assert repo.private and list(repo.files) == ["README.md", "pairs.jsonl"] and b"license: cc-by-4.0" in repo.files["README.md"]
    assert list(pairs.read(tmp_path / "back.jsonl", Drops())) == sent


@pytest.fixture
def sent(monkeypatch):
    """What would be uploaded: name -> text."""
    found = {}

    def upload(directory, *args):
        found.update({file.name: file.read_text() for file in directory.iterdir() if file.suffix != ".parquet"})
        return "there"

    monkeypatch.setattr(push, "upload", upload)
    return found


def test_of_a_job_its_data_go_with_its_card(tmp_path, sent):
    row = json.dumps({"instruction": "do", "chosen": "a", "rejected": "b"})
    (tmp_path / "data").mkdir()
    (tmp_path / "job.json").write_text("{}")
    (tmp_path / "journal.jsonl").write_text("{}")
    (tmp_path / "data" / "train.jsonl").write_text(row)
    (tmp_path / "data" / "README.md").write_text("---\nlanguage: [en]\n---\n\n# The job's card\n")
    assert push.push(tmp_path, f"{OWNER}/m") == ("there", 1)
    assert sent == {"train.jsonl": row, "README.md": "---\nlanguage: [en]\n---\n\n# The job's card\n"}
    push.push(tmp_path, f"{OWNER}/m", "mit")
    assert sent["README.md"] == "---\nlanguage:\n- en\nlicense: mit\n---\n\n# The job's card\n"
    (tmp_path / "data" / "README.md").write_text(sent["README.md"])
    with pytest.raises(DataError, match=r"README.md says license: mit, and --license cc0-1.0"):
        push.push(tmp_path, f"{OWNER}/m", "cc0-1.0")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "neither a job of `lpo-data distill` nor a file or directory of pairs"),
        (
            '{"chosen": "a", "rejected": "b"}\n{"chosen": "a", "rejected": "a"}',
            "1 rows can't be pairs, e.g. x.jsonl:2: both sides are equal",
        ),
        ('{"password": "mine"}', "fit no known format"),
    ],
)
def test_what_is_not_pairs_stays_here(tmp_path, sent, content, message):
    if content:
        (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        push.push(tmp_path, f"{OWNER}/m")
    assert sent == {}
