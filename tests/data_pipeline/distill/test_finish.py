"""The last step: duplicates and secrets go, the rest is split and written."""

import json

from data_pipeline.distill import finish
from tests.helpers.seed_pairs import PAIRS


def row(name, pair, **more):
    return {"id": name, "chosen": pair.chosen, "rejected": pair.rejected, "instruction": pair.instruction, "reasoning": pair.reasoning, "cwe": pair.cwe, "rule": pair.cwe.lower(), "library": "os", "model": "m"} | more  # fmt: skip


def test_finishing_drops_duplicates_and_secrets_and_its_files_load(tmp_path, monkeypatch):
    a, b = max(PAIRS, key=lambda pair: len(pair.chosen)), PAIRS[1]
    rows = [
        row("a", a),
        row("spaced", a, chosen=a.chosen + "\n\n"),
        row("near", a, chosen=a.chosen + "\nDEPTH = 1", rejected=a.rejected + "\nDEPTH = 1"),
        row("leak", b, reasoning="AKIA" + "QWERTYUIOPASDFGH"),
    ]
    rows += [row(f"p{i}", pair, findings=[]) for i, pair in enumerate(PAIRS)]
    kept, dropped = finish.finish(rows, 0.85)
    reasons = dict(dropped)
    assert (reasons["spaced"], reasons["near"], reasons["leak"]) == ("duplicate", "near-duplicate", "secret (AWS Access Key)")
    assert len(kept) + len(dropped) == len(rows)
    for by in ("rule", "cwe", "row"):
        parts = finish.split(kept, by, (0.1, 0.1), 0)
        assert sum(map(len, parts.values())) == len(kept) and all(parts.values())
        keys = [{r["id" if by == "row" else by] for r in part} for part in parts.values()]
        assert sum(map(len, keys)) == len(set.union(*keys))
    counts = finish.write(kept, tmp_path / "data", "rule", (0.1, 0.1), 0)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    import datasets

    loaded = datasets.load_dataset(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(part) for name, part in loaded.items()} == counts
    first = json.loads((tmp_path / "data" / "train.jsonl").read_text().splitlines()[0])
    assert loaded["train"][0]["chosen"] == first["chosen"]
