"""The journal of answers outlives a kill."""

import pytest

from data_pipeline.distill.journal import Journal
from data_pipeline.pairs import DataError


def test_a_torn_last_line_is_cut_off_and_another_damaged_one_named(tmp_path):
    path = tmp_path / "j"
    journal = Journal(path)
    for name in "ab":
        journal.add(name, {"q": name}, {"text": name})
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    journal = Journal(path)
    assert journal.answers == {"a": {"text": "a"}}
    journal.add("c", {}, {"text": "é"})
    journal.close()
    assert Journal(path).answers.keys() == {"a", "c"}
    path.write_bytes(b"{oops\n" + whole)
    with pytest.raises(DataError, match="line 1 is damaged"):
        Journal(path)
